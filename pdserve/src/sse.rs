//! Reads server-sent events, however the network cuts them.

use anyhow::ensure;

/// No server sends one token in an event as large as this.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// Cuts a byte stream into the `data` of its events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were looked at already.
    seen: usize,
    data: Vec<u8>,
}

impl Events {
    /// Takes what arrived and hands each whole event's data to `event`. Comments and other fields are skipped.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        mut event: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.buffer.extend_from_slice(bytes);
        while let Some(end) = self.buffer[self.seen..].iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..self.seen + end + 1).collect();
            self.seen = 0;
            self.line(line.trim_ascii_end(), &mut event)?;
        }
        self.seen = self.buffer.len();
        ensure!(self.seen + self.data.len() <= EVENT_BYTES_MAX, "an event is larger than {EVENT_BYTES_MAX} bytes");
        Ok(())
    }

    fn line(&mut self, line: &[u8], event: &mut impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return if data.is_empty() { Ok(()) } else { event(std::str::from_utf8(&data)?) };
        }
        if let Some(data) = line.strip_prefix(b"data:") {
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(data.trim_ascii_start());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pieces: &[&str], expected: &[&str]) {
        let mut events = Events::default();
        let mut found = Vec::new();
        for piece in pieces {
            let keep = |data: &str| {
                found.push(data.to_owned());
                Ok(())
            };
            events.push(piece.as_bytes(), keep).unwrap();
        }
        assert_eq!(found, expected, "{pieces:?}");
    }

    #[test]
    fn events_are_found_however_they_are_cut() {
        check(&["data: {\"a\":1}\n\ndata: [DONE]\n\n"], &["{\"a\":1}", "[DONE]"]);
        check(&["da", "ta: x", "\n", "\nda", "ta:y\n\n"], &["x", "y"]);
        check(&["data: x\r\n\r\n: ping\r\n\r\nevent: e\r\ndata: y\r\n\r\n"], &["x", "y"]);
        check(&["data: a\ndata: b\n\n"], &["a\nb"]);
        check(&["data: not ended\n"], &[]);
        check(&["\n\n\n"], &[]);
        let whole = "data: hälf\n\n";
        let split = whole.len() - 5;
        let mut events = Events::default();
        let mut found = String::new();
        for piece in [&whole.as_bytes()[..split], &whole.as_bytes()[split..]] {
            let keep = |data: &str| {
                found.push_str(data);
                Ok(())
            };
            events.push(piece, keep).unwrap();
        }
        assert_eq!(found, "hälf");
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut events = Events::default();
        let block = vec![b'x'; 1 << 20];
        assert!((0..5).any(|_| events.push(&block, |_| Ok(())).is_err()));
    }
}
