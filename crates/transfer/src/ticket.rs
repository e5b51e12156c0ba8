//! What D hands to P, by way of the scheduler, so that P may write into D's blocks.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use proto::kv as wire;
use types::{InstanceId, RequestId, RequestKey};

use crate::{TransferError, TransportKind};

/// Longest ticket that P reads.
const TICKET_BYTES_MAX: usize = 4096;
/// More endpoints than there are transports make no sense; the rest of a longer list is ignored.
const ENDPOINTS_MAX: usize = 8;

/// What only the ticket's holder knows; sent with every piece.
pub(crate) type Capability = [u8; 16];

/// A decoded, bounded ticket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    pub(crate) key: RequestKey,
    pub(crate) capability: Capability,
    /// D's name and process.
    pub(crate) instance: InstanceId,
    pub(crate) incarnation: u64,
    /// The tokens that D lacks; may be empty.
    pub(crate) tokens: Range<u32>,
    pub(crate) lease: Duration,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// One way to reach D.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint {
    pub(crate) kind: TransportKind,
    /// `host:port`, or the receiver's name within its process.
    pub(crate) address: String,
    /// Processes with equal host ids may share memory.
    pub(crate) host_id: String,
}

impl Ticket {
    pub(crate) fn encode(&self) -> Bytes {
        let endpoint = |endpoint: &Endpoint| wire::KvEndpoint {
            transport: endpoint.kind.to_string(),
            address: endpoint.address.clone(),
            host_id: endpoint.host_id.clone(),
        };
        let ticket = wire::Ticket {
            request_id: self.key.request.to_string(),
            epoch: self.key.epoch,
            capability: Bytes::copy_from_slice(&self.capability),
            instance: self.instance.to_string(),
            incarnation: self.incarnation,
            token_start: self.tokens.start,
            token_end: self.tokens.end,
            lease_ms: self.lease.as_millis() as u64,
            endpoints: self.endpoints.iter().map(endpoint).collect(),
        };
        ticket.encode_to_vec().into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, TransferError> {
        let bad = |reason: String| TransferError::BadTicket { reason };
        if bytes.len() > TICKET_BYTES_MAX {
            return Err(bad(format!("{} bytes, at most {TICKET_BYTES_MAX} are read", bytes.len())));
        }
        let ticket = wire::Ticket::decode(bytes).map_err(|error| bad(error.to_string()))?;
        let capability = Capability::try_from(&ticket.capability[..])
            .map_err(|_| bad(format!("capability of {} bytes, expected 16", ticket.capability.len())))?;
        let tokens = ticket.token_start..ticket.token_end;
        if tokens.start > tokens.end {
            return Err(bad(format!("tokens {}..{}", tokens.start, tokens.end)));
        }
        // A transport that we do not know comes from a newer peer: we use another.
        let known = |endpoint: wire::KvEndpoint| {
            let kind = endpoint.transport.parse().ok()?;
            Some(Endpoint { kind, address: endpoint.address, host_id: endpoint.host_id })
        };
        Ok(Self {
            key: RequestKey { request: RequestId::from(ticket.request_id), epoch: ticket.epoch },
            capability,
            instance: InstanceId::from(ticket.instance),
            incarnation: ticket.incarnation,
            tokens,
            lease: Duration::from_millis(ticket.lease_ms),
            endpoints: ticket.endpoints.into_iter().filter_map(known).take(ENDPOINTS_MAX).collect(),
        })
    }
}

/// Compares without telling by its duration where the first difference is.
pub(crate) fn same_capability(ours: &Capability, theirs: &[u8]) -> bool {
    ours.len() == theirs.len() && ours.iter().zip(theirs).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            key: RequestKey { request: "r".into(), epoch: 2 },
            capability: [7; 16],
            instance: "decode-0".into(),
            incarnation: 9,
            tokens: 16..40,
            lease: Duration::from_secs(10),
            endpoints: vec![Endpoint { kind: TransportKind::Tcp, address: "127.0.0.1:1".into(), host_id: "h".into() }],
        }
    }

    #[test]
    fn a_ticket_survives_the_wire() {
        assert_eq!(Ticket::decode(&ticket().encode()), Ok(ticket()));
    }

    #[test]
    fn bad_tickets_say_what_is_wrong() {
        let reversed = Ticket { tokens: Range { start: 2, end: 1 }, ..ticket() };
        let short = wire::Ticket { capability: vec![1, 2].into(), ..Default::default() };
        for (bytes, reason) in [
            (vec![0; 5000], "bad ticket: 5000 bytes, at most 4096 are read"),
            (reversed.encode().to_vec(), "bad ticket: tokens 2..1"),
            (short.encode_to_vec(), "bad ticket: capability of 2 bytes, expected 16"),
        ] {
            assert_eq!(Ticket::decode(&bytes).unwrap_err().to_string(), reason);
        }
    }

    #[test]
    fn capabilities_are_equal_only_as_a_whole() {
        let ours = [7; 16];
        assert!(same_capability(&ours, &[7; 16]));
        for length in [0, 15, 17] {
            assert!(!same_capability(&ours, &vec![7; length]));
        }
        for byte in 0..16 {
            let mut theirs = ours;
            theirs[byte] ^= 1;
            assert!(!same_capability(&ours, &theirs));
        }
    }
}
