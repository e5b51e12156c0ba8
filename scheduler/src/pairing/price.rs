//! What steps of an instance cost in seconds, fitted online from what it reports.

/// Weight that one observation keeps when the next arrives: about the last fifty count.
const DECAY: f64 = 0.98;

/// A straight line through recent observations: seconds = fixed + slope x units. Older ones fade.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    weight: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Line {
    pub(crate) fn observe(&mut self, units: f64, seconds: f64) {
        for (sum, term) in [
            (&mut self.weight, 1.0),
            (&mut self.x, units),
            (&mut self.y, seconds),
            (&mut self.xx, units * units),
            (&mut self.xy, units * seconds),
        ] {
            *sum = *sum * DECAY + term;
        }
    }

    /// Expected seconds for `units`, or `None` before the first observation. Never negative.
    pub(crate) fn at(&self, units: f64) -> Option<f64> {
        if self.weight == 0.0 {
            return None;
        }
        let (mean_x, mean_y) = (self.x / self.weight, self.y / self.weight);
        let spread = self.xx / self.weight - mean_x * mean_x;
        // All observations at one place say nothing about a slope of their own: assume proportional.
        let slope = if spread > 1e-6 * mean_x * mean_x {
            (self.xy / self.weight - mean_x * mean_y) / spread
        } else {
            mean_y / mean_x.max(1.0)
        };
        let slope = slope.max(0.0);
        let fixed = (mean_y - slope * mean_x).max(0.0);
        Some(fixed + slope * units)
    }
}

/// An average in which older observations fade.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fading {
    weight: f64,
    sum: f64,
}

impl Fading {
    pub(crate) fn observe(&mut self, value: f64) {
        self.weight = self.weight * 0.9 + 1.0;
        self.sum = self.sum * 0.9 + value;
    }

    pub(crate) fn get(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

/// Assumed until an instance of the cluster has reported a step: a small model on a few cores.
const PREFILL_TOKEN_SECONDS: f64 = 100e-6;
const DECODE_STEP_SECONDS: f64 = 5e-3;

/// What one instance charges.
#[derive(Clone, Debug, Default)]
pub(crate) struct Price {
    prefill: Line,
    decode: Line,
}

/// One step as its instance measured it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Step {
    pub(crate) prefill_tokens: u32,
    pub(crate) decode_rows: u32,
    pub(crate) seconds: f64,
}

impl Price {
    /// Steps that mix prompt and decode rows say nothing about either alone and are skipped.
    pub(crate) fn observe(&mut self, step: Step) {
        match (step.prefill_tokens, step.decode_rows) {
            (0, 0) => {}
            (tokens, 0) => self.prefill.observe(f64::from(tokens), step.seconds),
            (0, rows) => self.decode.observe(f64::from(rows), step.seconds),
            _ => {}
        }
    }

    /// Seconds to compute `tokens` of prompts.
    pub(crate) fn prefill(&self, tokens: u32) -> Option<f64> {
        if tokens == 0 { Some(0.0) } else { self.prefill.at(f64::from(tokens)) }
    }

    /// Seconds of one decode step over `rows` sequences.
    pub(crate) fn decode_step(&self, rows: u32) -> Option<f64> {
        self.decode.at(f64::from(rows))
    }
}

/// For an instance that has not computed a prompt yet: what the others charge on average, or else the assumption.
pub(crate) fn assumed_prefill<'a>(others: impl Iterator<Item = &'a Price>, tokens: u32) -> f64 {
    let known = others.filter_map(|price| price.prefill(tokens));
    mean(known).unwrap_or(f64::from(tokens) * PREFILL_TOKEN_SECONDS)
}

/// The same for one that has not decoded yet.
pub(crate) fn assumed_decode_step<'a>(others: impl Iterator<Item = &'a Price>, rows: u32) -> f64 {
    let known = others.filter_map(|price| price.decode_step(rows));
    mean(known).unwrap_or(DECODE_STEP_SECONDS)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[(f64, f64)]) -> Line {
        let mut line = Line::default();
        points.iter().for_each(|&(x, y)| line.observe(x, y));
        line
    }

    fn check(points: &[(f64, f64)], at: f64, expected: Option<f64>) {
        let found = line(points).at(at);
        match (found, expected) {
            (Some(found), Some(expected)) => assert!((found - expected).abs() < 1e-6, "{points:?}: {found} {expected}"),
            _ => assert_eq!(found, expected, "{points:?}"),
        }
    }

    #[test]
    fn a_line_is_fitted() {
        check(&[], 1.0, None);
        check(&[(10.0, 1.0)], 20.0, Some(2.0));
        check(&[(10.0, 1.0), (20.0, 1.5), (30.0, 2.0)], 40.0, Some(2.5));
        // A falling line is noise: never below zero, never cheaper for more.
        check(&[(10.0, 2.0), (20.0, 1.0)], 1000.0, Some(line(&[(10.0, 2.0), (20.0, 1.0)]).at(0.0).unwrap()));
    }

    #[test]
    fn who_has_not_worked_yet_is_expected_to_be_like_the_others() {
        let decoding = |seconds| {
            let mut price = Price::default();
            price.observe(Step { prefill_tokens: 0, decode_rows: 1, seconds });
            price
        };
        let assumed = |prices: &[Price]| assumed_decode_step(prices.iter(), 1);
        assert!((assumed(&[Price::default()]) - DECODE_STEP_SECONDS).abs() < 1e-9);
        assert!((assumed(&[Price::default(), decoding(0.1), decoding(0.3)]) - 0.2).abs() < 1e-9);
    }

    #[test]
    fn mixed_steps_are_not_observed() {
        let mut price = Price::default();
        price.observe(Step { prefill_tokens: 100, decode_rows: 3, seconds: 9.0 });
        assert_eq!(price.prefill(10), None);
        price.observe(Step { prefill_tokens: 100, decode_rows: 0, seconds: 1.0 });
        assert!((price.prefill(10).unwrap() - 0.1).abs() < 1e-9);
    }
}
