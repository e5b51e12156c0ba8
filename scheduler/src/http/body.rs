//! Reads a request's body within the bounds: its own size and time, and the memory of all bodies that are arriving.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Body as _;
use hyper::header::CONTENT_ENCODING;
use openai::{ApiError, ErrorKind};
use tokio::sync::SemaphorePermit;

use super::Api;

/// Bytes of each body that are always taken: ordinary requests go on while large ones are turned away.
const FREE_BYTES: usize = 64 << 10;
const RETRY_SECONDS: u32 = 1;

impl Api {
    /// The whole body.
    ///
    /// # Errors
    /// 413, 415, 429 when too many large bodies are arriving, 400 when it does not come in time or at all.
    pub(super) async fn body(&self, request: Request<Body>) -> Result<Bytes, ApiError> {
        let encoding = request.headers().get(CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| encoding != "identity") {
            let message = "content-encoding must be identity: compressed bodies are not taken";
            return Err(ApiError::new(ErrorKind::UnsupportedMediaType, message));
        }
        // What is announced is refused before it is sent.
        if request.body().size_hint().lower() > self.bounds.request.body_bytes {
            return Err(self.too_large());
        }
        let body = tokio::time::timeout(self.bounds.body_read, self.collect(request.into_body())).await;
        body.unwrap_or_else(|_| Err(ApiError::bad_request("the body did not arrive in time")))
    }

    /// What is held here counts until it is returned; from then on it is parsed without waiting for anyone.
    async fn collect(&self, mut body: Body) -> Result<Bytes, ApiError> {
        let (mut bytes, mut held) = (BytesMut::new(), None);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::bad_request("the body could not be read"))?;
            let Ok(data) = frame.into_data() else { continue };
            if (bytes.len() + data.len()) as u64 > self.bounds.request.body_bytes {
                return Err(self.too_large());
            }
            let charged = |bytes: usize| bytes.saturating_sub(FREE_BYTES);
            self.hold(&mut held, charged(bytes.len() + data.len()) - charged(bytes.len()))?;
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
    }

    fn hold<'a>(&'a self, held: &mut Option<SemaphorePermit<'a>>, bytes: usize) -> Result<(), ApiError> {
        let permit = self.arriving.try_acquire_many(u32::try_from(bytes).unwrap_or(u32::MAX));
        let refused = |_| {
            let message =
                format!("more than {} bytes of large bodies are arriving; try again soon", self.bounds.arriving_bytes);
            ApiError::overloaded(message, RETRY_SECONDS)
        };
        let permit = permit.map_err(refused)?;
        match held {
            Some(held) => held.merge(permit),
            None => *held = Some(permit),
        }
        Ok(())
    }

    fn too_large(&self) -> ApiError {
        let message = format!("the body is larger than the {} bytes allowed", self.bounds.request.body_bytes);
        ApiError::new(ErrorKind::TooLarge, message)
    }
}
