//! Mailboxes as callers see them: only bots leave mail, only for bots, and each fetches its own.

use std::sync::PoisonError;

use croft_protocol::api::{Failure, Response};
use croft_protocol::{BotId, Hash, PublicKey, limits};
use tokio::time::Instant;

use super::answer::at_most;
use super::{MAIL_PER_TIME, Server};
use crate::rate::show_wait;

impl Server {
    pub(super) async fn leave_mail(
        &self,
        from: PublicKey,
        to: BotId,
        sealed: Vec<u8>,
    ) -> Result<Response, Failure> {
        at_most("bytes of a sealed message", sealed.len(), limits::SEALED_MESSAGE_BYTES)?;
        if !self.is_bot(from).await? {
            return Err(Failure::Quota {
                what: format!("{from} is no bot on this grid and may not send messages"),
                remedy: "create it first with 'croft bot new'".to_owned(),
            });
        }
        if !self.is_bot(to).await? {
            return Err(Failure::NotFound { what: format!("bot {to}") });
        }
        {
            let mut mailing = self.mailing.lock().unwrap_or_else(PoisonError::into_inner);
            mailing.take(from, 1, Instant::now()).map_err(|wait| Failure::Quota {
                what: format!("you have left {} messages within a minute", MAIL_PER_TIME.amount),
                remedy: format!("send the next one in {}", show_wait(wait)),
            })?;
        }
        let mail = self.mail.clone();
        let expires_ms = self.blocking(move || mail.leave(from, to, &sealed)).await?;
        Ok(Response::MailLeft { expires_ms })
    }

    /// Of whoever asks: the key of the connection is proved by its handshake.
    pub(super) async fn fetch_mail(&self, of: PublicKey, after: u64) -> Result<Response, Failure> {
        let mail = self.mail.clone();
        let (mail, more) = self.blocking(move || mail.fetch(of, after)).await?;
        Ok(Response::Mail { mail, more })
    }

    pub(super) async fn drop_mail(&self, of: PublicKey, ids: Vec<Hash>) -> Result<Response, Failure> {
        at_most("messages", ids.len(), limits::MAIL_PER_REQUEST)?;
        let mail = self.mail.clone();
        let count = self.blocking(move || mail.drop_mail(of, &ids)).await?;
        Ok(Response::MailDropped { count })
    }
}
