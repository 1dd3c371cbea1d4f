//! Streams of messages from another replica, straight into the inbox that it has here.

use croft_protocol::PublicKey;
use croft_protocol::api::Response;
use croft_transport::frame::{self, FrameReader};
use croft_transport::{RecvStream, SendStream};

use super::Server;
use crate::ordering::bft::message::{MESSAGE_BYTES, PeerMessage};

/// Takes messages until the stream ends or one of them is none.
pub(super) async fn run(server: &Server, from: PublicKey, mut send: SendStream, mut recv: RecvStream) {
    let inbox = match server.ordering.inbox(&from) {
        Ok(inbox) => inbox,
        Err(failure) => return super::respond(&mut send, Response::Failed(failure)).await,
    };
    // The stream stays open at this end: the caller hears of our end by the connection's.
    let Ok(accepted) = super::encode(&Response::Replicating) else { return };
    if frame::write_encoded(&mut send, super::ANSWER, &accepted, super::ANSWER_TIME).await.is_err() {
        return;
    }
    let mut reader = FrameReader::new();
    loop {
        match reader.next::<_, PeerMessage>(&mut recv, "a message of a replica", MESSAGE_BYTES).await {
            Ok(Some(message)) => {
                let bytes = reader.last_bytes();
                if !inbox.deliver(message, bytes).await {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(peer = %from.short(), cause = crate::chain_of(&error), "a replica speaks nonsense");
                return;
            }
        }
    }
}
