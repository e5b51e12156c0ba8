//! Bytes to JSON, with nesting and number of values bounded before anything is built.

use serde_json::{Map, Value};

use crate::{ApiError, Bounds, ErrorKind};

/// Parses a request body, which must be one object.
pub(crate) fn parse_object(body: &[u8], bounds: &Bounds) -> Result<Map<String, Value>, ApiError> {
    match parse(body, bounds)? {
        Value::Object(fields) => Ok(fields),
        _ => Err(ApiError::bad_request("the body must be a JSON object")),
    }
}

/// Parses any JSON text within `body_bytes`, `json_depth` and `json_values`.
pub(crate) fn parse(text: &[u8], bounds: &Bounds) -> Result<Value, ApiError> {
    if text.len() as u64 > bounds.body_bytes {
        let message = format!("the body has {} bytes, more than the {} allowed", text.len(), bounds.body_bytes);
        return Err(ApiError::new(ErrorKind::TooLarge, message));
    }
    let size = measure(text);
    if size.depth > bounds.json_depth {
        return Err(ApiError::bad_request(format!(
            "the JSON is nested {} deep, more than the {} allowed",
            size.depth, bounds.json_depth
        )));
    }
    if size.values > bounds.json_values {
        return Err(ApiError::bad_request(format!(
            "the JSON has {} values, more than the {} allowed",
            size.values, bounds.json_values
        )));
    }
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

struct Size {
    depth: u64,
    /// At least the number of values, whatever else is wrong with the text.
    values: u64,
}

/// One pass over the bytes; strings are skipped, nothing is allocated.
fn measure(text: &[u8]) -> Size {
    let (mut depth, mut size) = (0u64, Size { depth: 0, values: 1 });
    let (mut in_string, mut escaped) = (false, false);
    for byte in text {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'[' | b'{') => {
                depth += 1;
                size.values += 1;
                size.depth = size.depth.max(depth);
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            (false, b',') => size.values += 1,
            _ => {}
        }
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &[u8], expected: Result<(), &str>) {
        let bounds = Bounds { json_depth: 4, json_values: 10, body_bytes: 100_000, ..Bounds::default() };
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
