//! The W3C `traceparent` header: one trace id from the HTTP header to the last worker, with or without span export.

use std::fmt;
use std::str::FromStr;

/// Position in a distributed trace. Never all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    /// The caller's span.
    pub span_id: [u8; 8],
    pub sampled: bool,
}

/// A header that is no `traceparent`; the trace starts anew then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no valid traceparent; expected 00-<32 hex digits>-<16 hex digits>-<2 hex digits>")]
pub struct BadTraceparent;

impl TraceContext {
    /// A new trace. The caller supplies the randomness.
    pub fn start(random: [u8; 24]) -> Self {
        let (mut trace_id, mut span_id) = ([0; 16], [0; 8]);
        trace_id.copy_from_slice(&random[..16]);
        span_id.copy_from_slice(&random[16..]);
        // All zero means "no trace" on the wire.
        trace_id[15] |= u8::from(trace_id == [0; 16]);
        span_id[7] |= u8::from(span_id == [0; 8]);
        Self { trace_id, span_id, sampled: true }
    }

    /// The same trace seen from a new span.
    pub fn child(&self, random: [u8; 8]) -> Self {
        let mut span_id = random;
        span_id[7] |= u8::from(span_id == [0; 8]);
        Self { span_id, ..*self }
    }
}

impl FromStr for TraceContext {
    type Err = BadTraceparent;

    /// Accepts version 00, and later ones as far as they begin alike.
    fn from_str(header: &str) -> Result<Self, BadTraceparent> {
        let mut parts = header.trim().splitn(5, '-');
        let mut part = || parts.next().ok_or(BadTraceparent);
        let [version]: [u8; 1] = hex(part()?)?;
        let trace_id = hex(part()?)?;
        let span_id = hex(part()?)?;
        let [flags]: [u8; 1] = hex(part()?)?;
        let longer = parts.next().is_some();
        if version == 0xff || (version == 0 && longer) || trace_id == [0; 16] || span_id == [0; 8] {
            return Err(BadTraceparent);
        }
        Ok(Self { trace_id, span_id, sampled: flags & 1 == 1 })
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.span_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", u8::from(self.sampled))
    }
}

/// Exactly `N` bytes in lower-case hex.
fn hex<const N: usize>(digits: &str) -> Result<[u8; N], BadTraceparent> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(BadTraceparent),
    };
    if digits.len() != 2 * N {
        return Err(BadTraceparent);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, expected: Option<&str>) {
        let found = header.parse::<TraceContext>().ok().map(|context| context.to_string());
        assert_eq!(found.as_deref(), expected, "{header:?}");
    }

    #[test]
    fn headers() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        check(good, Some(good));
        check(&format!(" {good} "), Some(good));
        check(
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02",
            Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
        );
        check("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-is-this", Some(good));
        check("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x", None);
        check("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None);
        check("00-00000000000000000000000000000000-b7ad6b7169203331-01", None);
        check("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", None);
        check("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", None);
        check("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", None);
        check("00-0af7651916cd43dd8448eb211c8031é-b7ad6b7169203331-01", None);
        check("", None);
    }

    #[test]
    fn a_new_trace_is_never_zero_and_a_child_keeps_it() {
        let context = TraceContext::start([0; 24]);
        check(&context.to_string(), Some("00-00000000000000000000000000000001-0000000000000001-01"));
        let child = context.child([7; 8]);
        assert_eq!((child.trace_id, child.span_id), (context.trace_id, [7; 8]));
    }
}
