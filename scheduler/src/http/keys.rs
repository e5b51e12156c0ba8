//! Who may come in: every path needs a key, once there are any, except those that probes ask. OPTIONS never needs one.
//!
//! Only digests of keys are kept. One that is sent is compared with all of them in the same time, whichever it is.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::middleware::Next;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};
use openai::ApiError;
use parking_lot::Mutex;
use subtle::ConstantTimeEq;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::{Api, Caller, error};
use crate::access::Access;

/// Paths that tell nothing about requests.
const OPEN: [&str; 3] = ["/health", "/ready", "/ping"];
const METRICS: [&str; 2] = ["/metrics", "/metrics/"];

/// What the cache salts of keys are derived for; other uses of a key's digest never meet it.
const SALT_CONTEXT: &str = "pdserve 2026 cache salt of an API key";

pub(crate) struct Keys {
    keys: Vec<Arc<Key>>,
    public_metrics: bool,
}

/// One key's account.
#[derive(Debug)]
pub(super) struct Key {
    digest: [u8; 32],
    /// `None` = it shares prefixes with everyone.
    salt: Option<[u8; 32]>,
    permits: Arc<Semaphore>,
    requests_max: usize,
    rate: Option<Rate>,
}

#[derive(Debug)]
struct Rate {
    per_minute: u32,
    bucket: Mutex<Bucket>,
}

/// Requests that may come at once; it fills up with time.
#[derive(Debug)]
struct Bucket {
    requests: f64,
    at: Instant,
}

/// Why a request does not come in.
#[derive(Debug)]
enum Refusal {
    Unauthorized,
    Limited(ApiError),
}

impl Keys {
    pub(crate) fn new(access: &Access) -> Self {
        let key = |secret: &[u8]| Key {
            digest: *blake3::hash(secret).as_bytes(),
            salt: (!access.share_prefixes).then(|| blake3::derive_key(SALT_CONTEXT, secret)),
            permits: Arc::new(Semaphore::new(access.requests_per_key)),
            requests_max: access.requests_per_key,
            rate: access.per_minute.map(|per_minute| Rate {
                per_minute,
                bucket: Mutex::new(Bucket { requests: f64::from(per_minute), at: Instant::now() }),
            }),
        };
        Self {
            keys: access.keys.iter().map(|secret| Arc::new(key(secret.secret().as_bytes()))).collect(),
            public_metrics: access.public_metrics,
        }
    }

    /// The account that a request runs on; `None` where none is needed.
    fn admit(&self, request: &Request<Body>, now: Instant) -> Result<Option<Arc<Key>>, Refusal> {
        if self.keys.is_empty() || request.method() == Method::OPTIONS || self.is_open(request.uri().path()) {
            return Ok(None);
        }
        let key = sent(request.headers()).and_then(|secret| self.find(secret)).ok_or(Refusal::Unauthorized)?;
        if let Some(rate) = &key.rate {
            rate.take(now).map_err(Refusal::Limited)?;
        }
        Ok(Some(key))
    }

    fn is_open(&self, path: &str) -> bool {
        OPEN.contains(&path) || self.public_metrics && METRICS.contains(&path)
    }

    fn find(&self, secret: &str) -> Option<Arc<Key>> {
        let digest = *blake3::hash(secret.as_bytes()).as_bytes();
        // No early end: the time must not tell how far a guess got.
        let equal = |found: Option<Arc<Key>>, key: &Arc<Key>| match bool::from(key.digest.ct_eq(&digest)) {
            true => Some(key.clone()),
            false => found,
        };
        self.keys.iter().fold(None, equal)
    }
}

/// The key of `Authorization: Bearer KEY`.
fn sent(headers: &HeaderMap) -> Option<&str> {
    let (scheme, secret) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(secret.trim())
}

impl Key {
    /// A place among this key's requests in flight.
    pub(super) fn permit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let message = || {
            format!("{} requests of this API key are in flight, which is its limit; try again soon", self.requests_max)
        };
        self.permits.clone().try_acquire_owned().map_err(|_| ApiError::overloaded(message(), 1))
    }

    /// Tells this key from others; not the key itself.
    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// What keeps this key's prefixes apart from those of others.
    pub(super) fn salt(&self) -> Option<&[u8; 32]> {
        self.salt.as_ref()
    }
}

impl Rate {
    fn take(&self, now: Instant) -> Result<(), ApiError> {
        self.bucket.lock().take(self.per_minute, now).map_err(|wait| {
            let message = format!("this API key may send {} requests per minute; try again later", self.per_minute);
            ApiError::overloaded(message, wait.as_secs_f64().ceil().max(1.0) as u32)
        })
    }
}

impl Bucket {
    /// # Errors
    /// How long until there is room for one.
    fn take(&mut self, per_minute: u32, now: Instant) -> Result<(), Duration> {
        let per_second = f64::from(per_minute) / 60.0;
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.requests = (self.requests + since * per_second).min(f64::from(per_minute));
        self.at = now;
        if self.requests < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.requests) / per_second));
        }
        self.requests -= 1.0;
        Ok(())
    }
}

/// Stands before every route.
pub(super) async fn guard(State(api): State<Arc<Api>>, mut request: Request<Body>, next: Next) -> Response<Body> {
    match api.keys.admit(&request, Instant::now()) {
        Ok(key) => {
            if let Some(caller) = request.extensions_mut().get_mut::<Caller>() {
                caller.key = key;
            }
            next.run(request).await
        }
        Err(Refusal::Limited(error)) => error::response(&error),
        Err(Refusal::Unauthorized) => unauthorized(),
    }
}

/// The body is vLLM's: a string, not an object.
fn unauthorized() -> Response<Body> {
    let mut response = Response::new(Body::from(r#"{"error":"Unauthorized"}"#));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_in() {
        let access = Access { keys: vec!["one".to_owned().into(), "two".to_owned().into()], ..Access::default() };
        let closed = Keys::new(&access);
        let measured = Keys::new(&Access { public_metrics: true, ..access });
        let check = |keys: &Keys, method: &str, path: &str, header: Option<&str>, expected: bool| {
            let mut request = Request::builder().method(method).uri(path);
            if let Some(header) = header {
                request = request.header(AUTHORIZATION, header);
            }
            let found = keys.admit(&request.body(Body::empty()).unwrap(), Instant::now());
            assert_eq!(found.is_ok(), expected, "{method} {path} {header:?}");
        };
        for path in
            ["/v1/models", "/v1/completions", "/tokenize", "/generate", "/metrics", "/nowhere", "/health/", "//health"]
        {
            for (header, expected) in [
                (None, false),
                (Some("Bearer one"), true),
                (Some("bearer  two"), true),
                (Some("Bearer on"), false),
                (Some("Bearer onee"), false),
                (Some("Bearer"), false),
                (Some("Bearer "), false),
                (Some("Basic one"), false),
                (Some("one"), false),
            ] {
                check(&closed, "POST", path, header, expected);
            }
            check(&closed, "OPTIONS", path, None, true);
        }
        for path in OPEN {
            check(&closed, "GET", path, None, true);
        }
        check(&measured, "GET", "/metrics", None, true);
        check(&measured, "GET", "/metrics/", None, true);
        check(&measured, "GET", "/v1/models", None, false);
        check(&Keys::new(&Access::default()), "POST", "/v1/completions", None, true);
    }

    #[test]
    fn a_bucket_fills_up_with_time() {
        let start = Instant::now();
        let mut bucket = Bucket { requests: 2.0, at: start };
        let mut check = |seconds: f64, expected: Result<(), f64>| {
            let found = bucket.take(2, start + Duration::from_secs_f64(seconds));
            assert_eq!(found.map_err(|wait| wait.as_secs_f64().round()), expected, "at {seconds} s");
        };
        check(0.0, Ok(()));
        check(0.0, Ok(()));
        check(0.0, Err(30.0));
        check(15.0, Err(15.0));
        check(31.0, Ok(()));
        check(1000.0, Ok(()));
        check(1000.0, Ok(()));
        check(1000.0, Err(30.0));
    }

    #[test]
    fn keys_differ_in_salt_unless_they_share() {
        let salts = |share_prefixes| {
            let keys = vec!["one".to_owned().into(), "two".to_owned().into()];
            let keys = Keys::new(&Access { keys, share_prefixes, ..Access::default() });
            [keys.keys[0].salt, keys.keys[1].salt]
        };
        let [one, two] = salts(false);
        assert!(one.is_some() && two.is_some() && one != two);
        assert_eq!(salts(true), [None, None]);
    }
}
