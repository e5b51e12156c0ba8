//! One connection on D, whatever carries it: handshake, then pieces, one after the other.

use std::sync::Arc;

use proto::kv::kv_frame::Body as Frame;
use proto::kv::kv_reply::Body as Reply;
use proto::kv::{KvHello, KvReply, Piece, PieceAck, PieceNack};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use types::InstanceId;

use crate::landing::{Landed, Source};
use crate::receiver::Registry;
use crate::transport::FrameSource;
use crate::{Refusal, TransferError, handshake};

/// Replies waiting for a connection to carry them; more than the pieces that fit into its credit.
pub(crate) const REPLIES_MAX: usize = 1024;

/// Serves one connection until it ends. What was arriving by it has failed then, also if the future is dropped.
pub(crate) async fn serve(
    registry: Arc<Registry>,
    mut frames: Box<dyn FrameSource>,
    replies: mpsc::Sender<KvReply>,
    address: String,
) {
    let mut connection =
        Connection { number: registry.connection(), registry, peer: "unknown".into(), address, replies };
    let reason = match connection.welcome(&mut *frames).await {
        Ok(true) => connection.pieces(&mut *frames).await.err(),
        Ok(false) => None,
        Err(reason) => Some(reason),
    };
    if let Some(reason) = reason {
        tracing::warn!(peer = %connection.peer, address = connection.address, reason, "kv connection failed");
        connection.registry.counters.count_connection_lost();
    }
}

struct Connection {
    number: u64,
    registry: Arc<Registry>,
    /// Known from the hello on.
    peer: InstanceId,
    address: String,
    replies: mpsc::Sender<KvReply>,
}

impl Connection {
    /// Answers the hello; false if the two do not fit.
    async fn welcome(&mut self, frames: &mut dyn FrameSource) -> Result<bool, String> {
        let first =
            timeout(self.registry.config.bounds.hello, frames.next()).await.map_err(|_| "no hello came".to_owned())?;
        let hello: KvHello = match first? {
            Some(Frame::Hello(hello)) => hello,
            Some(_) => return Err("the first frame is not a hello".to_owned()),
            // A port scan, or a peer that changed its mind.
            None => return Ok(false),
        };
        self.peer = InstanceId::from(hello.instance.as_str());
        let opened = timeout(self.registry.config.bounds.hello, frames.open(&hello, &*self.registry.store)).await;
        let shm_refusal =
            opened.unwrap_or_else(|_| Err("it was not handed over in time".to_owned())).err().unwrap_or_default();
        let welcome = handshake::welcome(&self.registry.config, &self.registry.layout, &hello, shm_refusal);
        if let Some(mismatch) = &welcome.mismatch {
            let (field, ours, theirs) = (&mismatch.field, &mismatch.ours, &mismatch.theirs);
            tracing::warn!(peer = %self.peer, address = self.address, field, ours, theirs, "kv peer does not fit");
        }
        let fits = welcome.mismatch.is_none() && welcome.shm_refusal.is_empty();
        self.reply(Reply::Welcome(welcome)).await?;
        Ok(fits)
    }

    async fn pieces(&self, frames: &mut dyn FrameSource) -> Result<(), String> {
        let source = Source { connection: self.number, kind: frames.kind(), replies: self.replies.clone() };
        while let Some(frame) = frames.next().await? {
            match frame {
                Frame::Piece(piece) => self.piece(&piece, frames, &source).await?,
                Frame::Abandon(abandon) => self.registry.abandon(&abandon),
                Frame::Hello(_) => return Err("a second hello".to_owned()),
            }
        }
        Ok(())
    }

    /// Admits, reads, lands and answers one piece. A refused one is answered, too; `Err` ends the connection.
    async fn piece(&self, piece: &Piece, frames: &mut dyn FrameSource, source: &Source) -> Result<(), String> {
        let now = Instant::now();
        let site = self.registry.site_of(piece);
        let admitted = site.and_then(|site| site.admit(piece, now).map(|span| (site, span)));
        let late = |_| "a piece's payload did not come".to_owned();
        match admitted {
            Ok((site, span)) => {
                let payload =
                    timeout(self.registry.config.bounds.payload, frames.payload(piece)).await.map_err(late)??;
                let landed = site.land(piece, span, payload, source, Instant::now());
                self.reply(self.answer(piece, landed, source)).await?;
                // Not before: whoever waits for it tells P at once that all is committed, and that must not overtake the answer.
                site.complete();
            }
            Err(refusal) => {
                timeout(self.registry.config.bounds.payload, frames.skip(piece)).await.map_err(late)??;
                self.reply(self.answer(piece, Err(refusal), source)).await?;
            }
        }
        Ok(())
    }

    /// Counts what became of a piece, and tells P.
    fn answer(&self, piece: &Piece, landed: Result<Landed, Refusal>, source: &Source) -> Reply {
        let counters = &self.registry.counters;
        match landed {
            Ok(Landed::Written) => counters.count_piece(source.kind, piece.payload_len),
            Ok(Landed::Duplicate) => counters.count_duplicate(),
            Err(refusal) => {
                counters.count_refused(refusal);
                tracing::debug!(peer = %self.peer, request = piece.request_id, epoch = piece.epoch, %refusal, "piece refused");
                let (reason, resend) = (refusal.to_string(), refusal == Refusal::Checksum);
                return Reply::Nack(PieceNack { piece: piece.piece, reason, resend });
            }
        }
        Reply::Ack(PieceAck { piece: piece.piece })
    }

    async fn reply(&self, body: Reply) -> Result<(), String> {
        let sent = timeout(self.registry.config.bounds.payload, self.replies.send(KvReply { body: Some(body) })).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("closed while replies were waiting".to_owned()),
            Err(_) => Err("the peer does not read its replies".to_owned()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let reason = "the connection ended".to_owned();
        let error = TransferError::PeerGone { peer: self.peer.clone(), address: self.address.clone(), reason };
        self.registry.lost(self.number, &error);
    }
}
