//! Where a copy comes from.

use std::time::Duration;

use croft_protocol::api::{Request, Response};
use croft_protocol::boot::ReplicaAddress;
use croft_protocol::{PublicKey, limits};
use croft_transport::{Connection, Endpoint, frame};
use tokio::sync::Mutex;

use crate::chain_of;

/// A page of 4 MiB at 1 Mbit/s takes 34 s.
const PAGE_TIME: Duration = Duration::from_secs(60);

/// Somebody who may be asked, and may lie.
pub(super) trait Source: Send + Sync {
    fn key(&self) -> PublicKey;

    /// One answer, or why there is none.
    fn ask(&self, request: Request) -> impl Future<Output = Result<Response, String>> + Send;
}

/// A replica at an address.
#[derive(Debug)]
pub struct Link {
    endpoint: Endpoint,
    replica: ReplicaAddress,
    connection: Mutex<Option<Connection>>,
}

impl Link {
    pub(super) fn new(endpoint: Endpoint, replica: ReplicaAddress) -> Self {
        Self { endpoint, replica, connection: Mutex::new(None) }
    }

    pub(super) async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take() {
            connection.close("the copy is made");
        }
    }

    /// The connection that is open, or a new one.
    async fn connection(&self) -> Result<Connection, String> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| connection.is_open()) {
            return Ok(connection.clone());
        }
        let ReplicaAddress { address, key } = self.replica;
        let connection = self.endpoint.connect(address, key).await.map_err(|error| chain_of(&error))?;
        *slot = Some(connection.clone());
        Ok(connection)
    }
}

impl Source for Link {
    fn key(&self) -> PublicKey {
        self.replica.key
    }

    async fn ask(&self, request: Request) -> Result<Response, String> {
        let connection = self.connection().await?;
        let asked = frame::request(&connection, &request, limits::RESPONSE_BYTES, PAGE_TIME).await;
        asked.map_err(|error| {
            // It may still be open, and useless.
            connection.close("it does not answer");
            chain_of(&error)
        })
    }
}
