//! Bytes to JSON, with nesting and numbers of values and keys bounded before anything is built.

use memchr::memchr2;
use serde_json::{Map, Value};

use crate::{ApiError, Bounds, ErrorKind};

/// Parses a request body, which must be one object.
pub(crate) fn parse_object(body: &[u8], bounds: &Bounds) -> Result<Map<String, Value>, ApiError> {
    match parse(body, bounds)? {
        Value::Object(fields) => Ok(fields),
        _ => Err(ApiError::bad_request("the body must be a JSON object")),
    }
}

/// Parses any JSON text within `body_bytes`, `json_depth`, `json_values` and `json_keys`.
pub(crate) fn parse(text: &[u8], bounds: &Bounds) -> Result<Value, ApiError> {
    if text.len() as u64 > bounds.body_bytes {
        let message = format!("the body has {} bytes, more than the {} allowed", text.len(), bounds.body_bytes);
        return Err(ApiError::new(ErrorKind::TooLarge, message));
    }
    measure(text).check(bounds)?;
    serde_json::from_slice(text).map_err(|error| {
        // serde_json's own words may quote input; the place and the class do not.
        let what = match error.classify() {
            serde_json::error::Category::Eof => "it ends too early",
            _ => "it cannot be read",
        };
        ApiError::bad_request(format!(
            "the body is not valid JSON: {what} at line {} column {}",
            error.line(),
            error.column()
        ))
    })
}

/// What a text would become, or more, whatever else is wrong with it.
struct Size {
    depth: u64,
    values: u64,
    keys: u64,
}

impl Size {
    fn check(&self, bounds: &Bounds) -> Result<(), ApiError> {
        let refuse = |words| Err(ApiError::bad_request(format!("the JSON {words}")));
        if self.depth > bounds.json_depth {
            return refuse(format!("is nested {} deep, more than the {} allowed", self.depth, bounds.json_depth));
        }
        if self.values > bounds.json_values {
            return refuse(format!("has {} values, more than the {} allowed", self.values, bounds.json_values));
        }
        if self.keys > bounds.json_keys {
            return refuse(format!("has {} keys, more than the {} allowed", self.keys, bounds.json_keys));
        }
        Ok(())
    }
}

/// One pass over the bytes; strings are skipped, nothing is allocated.
fn measure(text: &[u8]) -> Size {
    let (mut depth, mut size) = (0u64, Size { depth: 0, values: 1, keys: 0 });
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => at += string_len(&text[at + 1..]),
            b'[' | b'{' => {
                depth += 1;
                size.values += 1;
                size.depth = size.depth.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => size.values += 1,
            b':' => size.keys += 1,
            _ => {}
        }
        at += 1;
    }
    size
}

/// Bytes of a string whose opening quote stands before, with its closing quote.
fn string_len(rest: &[u8]) -> usize {
    let mut at = 0;
    while let Some(found) = memchr2(b'"', b'\\', &rest[at..]) {
        at += found + 1;
        match rest[at - 1] {
            b'"' => return at,
            // Whatever is escaped is part of it.
            _ => at = (at + 1).min(rest.len()),
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &[u8], expected: Result<(), &str>) {
        let bounds = Bounds { json_depth: 4, json_values: 10, json_keys: 3, body_bytes: 100_000, ..Bounds::default() };
        match (parse(text, &bounds), expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(part)) => {
                assert!(error.message.contains(part), "{}: {error}", String::from_utf8_lossy(text))
            }
            (found, expected) => panic!("{}: {found:?}, expected {expected:?}", String::from_utf8_lossy(text)),
        }
    }

    #[test]
    fn bounds_hold_before_anything_is_built() {
        check(br#"{"a":[1,2,"]]]]]]]]"]}"#, Ok(()));
        check(br#"{"a":"\"[[[[[[[["}"#, Ok(()));
        check(b"[[[[]]]]", Ok(()));
        check(b"[[[[[]]]]]", Err("nested 5 deep, more than the 4 allowed"));
        check(&[b'['; 50_000], Err("nested 50000 deep"));
        check(b"[1,2,3,4,5,6,7,8]", Ok(()));
        check(b"[1,2,3,4,5,6,7,8,9,10]", Err("values, more than the 10 allowed"));
        check(br#"{"a:":1,"b":":","c":{}}"#, Ok(()));
        check(br#"{"a":1,"b":2,"c":{"d":3}}"#, Err("4 keys, more than the 3 allowed"));
        check(&[b' '; 100_001], Err("100001 bytes, more than the 100000 allowed"));
    }

    #[test]
    fn broken_json_is_refused_with_its_place() {
        check(b"", Err("it ends too early at line 1 column 0"));
        check(b"{\"a\": NaN}", Err("it cannot be read at line 1 column"));
        check(b"{\"a\": 1e999}", Err("it cannot be read"));
        check(b"{\"a\": \"\\ud800\"}", Err("it cannot be read"));
        check(b"{\"a\": \"\xff\"}", Err("it cannot be read"));
        check(b"{\"a\": 1} x", Err("it cannot be read"));
        check(b"{\"a\": 1,}", Err("it cannot be read"));
    }

    #[test]
    fn a_body_must_be_an_object() {
        let error = parse_object(b"[1]", &Bounds::default()).unwrap_err();
        assert_eq!((error.status(), error.message.as_str()), (400, "the body must be a JSON object"));
    }
}
