//! How long prompts and outputs are: all equal, or mixed as in recorded chats.

use clap::ValueEnum;
use rand::Rng;

/// A distribution of lengths by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Mix {
    /// Every request as --input and --output say
    Fixed,
    /// Log-normal lengths as in shared chats: mean 161 tokens in and 338 out before cutting to 4..1024
    Sharegpt,
}

/// `exp(N(mu, sigma))`, cut to a range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LogNormal {
    pub(super) mu: f64,
    pub(super) sigma: f64,
    pub(super) min: u32,
    pub(super) max: u32,
}

/// Tokens in and out of ShareGPT chats. The means before cutting (161 and 338, that is exp(mu + sigma^2 / 2)) are those that the
/// PagedAttention paper reports for the data set; the sigmas are our choice, and 4..1024 is the cut that serving benchmarks use.
pub(super) const SHAREGPT_INPUT: LogNormal = LogNormal { mu: 4.236, sigma: 1.3, min: 4, max: 1024 };
/// See [`SHAREGPT_INPUT`].
pub(super) const SHAREGPT_OUTPUT: LogNormal = LogNormal { mu: 5.323, sigma: 1.0, min: 4, max: 1024 };

impl LogNormal {
    pub(super) fn sample(&self, random: &mut impl Rng) -> u32 {
        let length = (self.mu + self.sigma * standard_normal(random)).exp();
        (length.round() as u32).clamp(self.min, self.max)
    }
}

/// Seconds to the next arrival of a Poisson process of `rate` per second.
pub(super) fn next_arrival(rate: f64, random: &mut impl Rng) -> f64 {
    -(1.0 - random.random::<f64>()).ln() / rate
}

/// Box-Muller.
fn standard_normal(random: &mut impl Rng) -> f64 {
    let (u, v): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    #[test]
    fn the_documented_means_are_those_of_the_parameters() {
        for (mix, expected) in [(SHAREGPT_INPUT, 161.0), (SHAREGPT_OUTPUT, 338.0)] {
            let mean = (mix.mu + mix.sigma * mix.sigma / 2.0).exp();
            assert!((mean - expected).abs() < 1.0, "{mean}");
        }
    }

    #[test]
    fn samples_follow_the_parameters_and_stay_within_the_cut() {
        for mix in [SHAREGPT_INPUT, SHAREGPT_OUTPUT] {
            let mut random = StdRng::seed_from_u64(11);
            let samples: Vec<_> = (0..20_000).map(|_| mix.sample(&mut random)).collect();
            assert!(samples.iter().all(|n| (mix.min..=mix.max).contains(n)));
            // Cutting moves few samples, and none across the median.
            let below = samples.iter().filter(|&&n| f64::from(n) < mix.mu.exp()).count();
            assert!((9_600..10_400).contains(&below), "{below} of 20000 below the median");
            let one_sigma = samples.iter().filter(|&&n| f64::from(n) < (mix.mu - mix.sigma).exp()).count();
            assert!((2_900..3_450).contains(&one_sigma), "{one_sigma} of 20000 below one sigma");
        }
    }

    #[test]
    fn a_seed_repeats_its_lengths() {
        let draw = |seed| {
            let mut random = StdRng::seed_from_u64(seed);
            (0..8).map(|_| SHAREGPT_INPUT.sample(&mut random)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn arrivals_come_at_their_rate() {
        let mut random = StdRng::seed_from_u64(5);
        let gaps: Vec<_> = (0..20_000).map(|_| next_arrival(4.0, &mut random)).collect();
        assert!((mean(&gaps) - 0.25).abs() < 0.01);
        assert!(gaps.iter().all(|&gap| gap >= 0.0 && gap.is_finite()));
    }
}
