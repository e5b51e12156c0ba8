//! Who may come in, and who waits: a permit per request, a bounded line for those that found no room on the instances.
//!
//! The line is first come, first served: only its head asks for room, so that a large request is not overtaken for ever.

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::bounds::Bounds;
use crate::request::RequestError;

pub(crate) struct Admission {
    permits: Arc<Semaphore>,
    requests_max: usize,
    places: Semaphore,
    waiting_max: usize,
    head: Mutex<()>,
}

/// A place in the line, and later its head.
pub(crate) struct Place<'a> {
    admission: &'a Admission,
    _place: SemaphorePermit<'a>,
}

impl Admission {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(bounds.requests)),
            requests_max: bounds.requests,
            places: Semaphore::new(bounds.waiting),
            waiting_max: bounds.waiting,
            head: Mutex::new(()),
        }
    }

    /// A permit for one request; dropping it makes room for the next.
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, RequestError> {
        let permit = self.permits.clone().try_acquire_owned();
        permit.map_err(|_| RequestError::Overloaded { limit: self.requests_max })
    }

    /// Whether someone waits for room: who comes new must not overtake them.
    pub(crate) fn has_line(&self) -> bool {
        self.places.available_permits() < self.waiting_max
    }

    pub(crate) fn queue(&self) -> Result<Place<'_>, RequestError> {
        let place = self.places.try_acquire().map_err(|_| RequestError::LineFull { limit: self.waiting_max })?;
        Ok(Place { admission: self, _place: place })
    }

    /// Requests in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.requests_max - self.permits.available_permits()
    }
}

impl Place<'_> {
    /// Waits until everyone before has found room or given up.
    pub(crate) async fn head(&self) -> MutexGuard<'_, ()> {
        self.admission.head.lock().await
    }
}
