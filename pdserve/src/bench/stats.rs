//! Percentiles and medians, in one place so that every table means the same by them.

/// The value that a fraction `p` of the values does not exceed (nearest rank): p99 of 100 values is the 99th, of 10 the largest.
///
/// `None` without values.
pub(crate) fn percentile(values: &[f64], p: f64) -> Option<f64> {
    let sorted = sorted(values);
    let rank = (p * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// The middle value; of an even number of values the mean of the middle two. `None` without values.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = if sorted.len().is_multiple_of(2) { sorted[sorted.len() / 2 - 1] } else { upper };
    Some(f64::midpoint(lower, upper))
}

pub(crate) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (values, p, expected) in [
            (&hundred[..], 0.5, Some(50.0)),
            (&hundred, 0.9, Some(90.0)),
            (&hundred, 0.99, Some(99.0)),
            (&hundred, 1.0, Some(100.0)),
            (&hundred, 0.0, Some(1.0)),
            (&[3.0, 1.0, 2.0], 0.5, Some(2.0)),
            (&[1.0, 2.0, 3.0, 4.0], 0.5, Some(2.0)),
            (&[7.0], 0.99, Some(7.0)),
            (&[], 0.5, None),
        ] {
            assert_eq!(percentile(values, p), expected, "p{p} of {} values", values.len());
        }
    }

    #[test]
    fn medians() {
        for (values, expected) in
            [(&[][..], None), (&[5.0], Some(5.0)), (&[9.0, 1.0], Some(5.0)), (&[9.0, 1.0, 2.0], Some(2.0))]
        {
            assert_eq!(median(values), expected, "{values:?}");
        }
    }
}
