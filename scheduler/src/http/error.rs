//! From error to status: the one table.

use axum::body::Body;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use openai::{ApiError, ErrorKind};
use telemetry::Outcome;

use crate::request::RequestError;

/// Seconds after which a client that was turned away should try again.
pub(crate) const RETRY_SECONDS: u32 = 1;

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let text = error.to_string();
        match error {
            RequestError::Overloaded { .. } | RequestError::LineFull { .. } => {
                ApiError::overloaded(text, RETRY_SECONDS)
            }
            RequestError::NoRoom { .. } | RequestError::NoInstance { .. } | RequestError::Attempts { .. } => {
                ApiError::unavailable(text, RETRY_SECONDS)
            }
            RequestError::TooLong { .. } | RequestError::Rejected { .. } => ApiError::bad_request(text),
            RequestError::SlowReader { .. } => ApiError::new(ErrorKind::Timeout, text),
            RequestError::Internal => ApiError::new(ErrorKind::Internal, text),
        }
    }
}

/// How the metrics count a request that ended with this error.
pub(crate) fn outcome(error: &ApiError) -> Outcome {
    match error.kind {
        ErrorKind::TooManyRequests | ErrorKind::Unavailable => Outcome::Shed,
        ErrorKind::Internal | ErrorKind::Timeout => Outcome::Failed,
        _ => Outcome::Refused,
    }
}

pub(crate) fn response(error: &ApiError) -> Response<Body> {
    let mut response = Response::new(Body::from(error.body()));
    *response.status_mut() = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use types::Role;

    #[test]
    fn every_error_has_its_status() {
        let check = |error: RequestError, status, retry: bool| {
            let response = response(&ApiError::from(error));
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(response.headers().contains_key(RETRY_AFTER), retry);
        };
        check(RequestError::Overloaded { limit: 1 }, 429, true);
        check(RequestError::LineFull { limit: 1 }, 429, true);
        check(RequestError::NoRoom { waited: Duration::ZERO }, 503, true);
        check(RequestError::NoInstance { role: Role::Decode }, 503, true);
        check(RequestError::Attempts { attempts: 4 }, 503, true);
        check(RequestError::TooLong { tokens: 2, tokens_max: 1 }, 400, false);
        check(RequestError::Rejected { message: String::new() }, 400, false);
        check(RequestError::SlowReader { unread: 1 }, 504, false);
        check(RequestError::Internal, 500, false);
    }
}
