//! What steps of an instance cost in seconds, fitted online from what it reports.

/// Weight that one observation keeps when the next arrives: about the last fifty count.
const DECAY: f64 = 0.98;

/// A straight line through recent observations: seconds = fixed + slope x units. Older ones fade.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    /// The line, from the first observation on: every choice asks a dozen instances for theirs.
    fixed: f64,
    slope: f64,
    /// What it is made of, out of the way.
    sums: Option<Box<Sums>>,
}

#[derive(Clone, Debug, Default)]
struct Sums {
    weight: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Line {
    pub(super) fn observe(&mut self, units: f64, seconds: f64) {
        let sums = self.sums.get_or_insert_default();
        sums.add(units, seconds);
        (self.fixed, self.slope) = sums.fit();
    }

    /// Expected seconds for `units`, or `None` before the first observation. Never negative.
    pub(super) fn at(&self, units: f64) -> Option<f64> {
        self.sums.is_some().then_some(self.fixed + self.slope * units)
    }
}

impl Sums {
    fn add(&mut self, units: f64, seconds: f64) {
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

    /// Seconds for nothing and for each unit, neither of them negative.
    fn fit(&self) -> (f64, f64) {
        let (mean_x, mean_y) = (self.x / self.weight, self.y / self.weight);
        let spread = self.xx / self.weight - mean_x * mean_x;
        // All observations at one place say nothing about a slope of their own: assume proportional.
        let slope = if spread > 1e-6 * mean_x * mean_x {
            (self.xy / self.weight - mean_x * mean_y) / spread
        } else {
            mean_y / mean_x.max(1.0)
        };
        let slope = slope.max(0.0);
        ((mean_y - slope * mean_x).max(0.0), slope)
    }
}

/// Assumed until an instance of the cluster has reported a step: a small model on a few cores.
const PREFILL_TOKEN_SECONDS: f64 = 100e-6;
const DECODE_STEP_SECONDS: f64 = 5e-3;

/// What one instance charges.
#[derive(Clone, Debug, Default)]
pub(super) struct Price {
    prefill: Line,
    decode: Line,
}

/// One step as its instance measured it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Step {
    pub prefill_tokens: u32,
    pub decode_rows: u32,
    pub seconds: f64,
}

impl Price {
    /// Steps that mix prompt and decode rows say nothing about either alone and are skipped.
    pub(super) fn observe(&mut self, step: Step) {
        match (step.prefill_tokens, step.decode_rows) {
            (0, 0) => {}
            (tokens, 0) => self.prefill.observe(f64::from(tokens), step.seconds),
            (0, rows) => self.decode.observe(f64::from(rows), step.seconds),
            _ => {}
        }
    }

    /// Seconds to compute `tokens` of prompts. Who has not computed any yet will charge what is typical.
    pub(super) fn prefill(&self, tokens: u32, typical: &Price) -> f64 {
        if tokens == 0 {
            return 0.0;
        }
        let tokens = f64::from(tokens);
        self.prefill.at(tokens).or_else(|| typical.prefill.at(tokens)).unwrap_or(tokens * PREFILL_TOKEN_SECONDS)
    }

    /// Seconds of one decode step over `rows` sequences, in the same way.
    pub(super) fn decode_step(&self, rows: u32, typical: &Price) -> f64 {
        let rows = f64::from(rows);
        self.decode.at(rows).or_else(|| typical.decode.at(rows)).unwrap_or(DECODE_STEP_SECONDS)
    }
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
        let (new, mut typical) = (Price::default(), Price::default());
        assert!((new.decode_step(1, &typical) - DECODE_STEP_SECONDS).abs() < 1e-9);
        for seconds in [0.1, 0.3].repeat(100) {
            typical.observe(Step { prefill_tokens: 0, decode_rows: 1, seconds });
        }
        assert!((new.decode_step(1, &typical) - 0.2).abs() < 2e-3);
    }

    #[test]
    fn mixed_steps_are_not_observed() {
        let mut price = Price::default();
        price.observe(Step { prefill_tokens: 100, decode_rows: 3, seconds: 9.0 });
        assert!((price.prefill(10, &Price::default()) - 10.0 * PREFILL_TOKEN_SECONDS).abs() < 1e-9);
        price.observe(Step { prefill_tokens: 100, decode_rows: 0, seconds: 1.0 });
        assert!((price.prefill(10, &Price::default()) - 0.1).abs() < 1e-9);
    }
}
