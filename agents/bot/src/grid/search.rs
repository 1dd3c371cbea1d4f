//! Reading the log in its order, and searching with proofs.
//!
//! A search must never hand on a thing that was not proved where proofs were asked for. That nothing was left
//! out, no proof shows.

use croft_light::{LightError, Tip, verify_record, verify_value};
use croft_protocol::api::{Cursor, ProvedRecord, ProvedThing, Query};
use croft_protocol::{NodeCapacity, PublicKey, Record, StateKey, limits};

use croft_transport::{Answer, Client};

use super::{Grid, GridError};

/// What a search found of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundThing {
    pub record: Record,
    /// Of a node, where proofs were asked for.
    pub capacity: Option<NodeCapacity>,
}

/// One page of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPage {
    pub things: Vec<FoundThing>,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
    /// The header against which all of it was proved, if it was.
    pub tip: Option<Tip>,
}

impl Grid {
    /// Records of the log from a position on, as many as fit into an answer, and the header that shows them.
    pub async fn log(&self, first: u64, count: u32) -> Result<(Tip, Vec<Record>), GridError> {
        let check = |tip: &Tip, proved: &Vec<ProvedRecord>| {
            let records = (first..).zip(proved).map(|(at, proved)| match verify_record(tip, proved) {
                Ok(_) if proved.index != at => Err(LightError::Record {
                    height: tip.height(),
                    index: proved.index,
                    id: proved.record.id,
                    reason: format!("record {at} was asked for"),
                }),
                other => other.cloned(),
            });
            Ok((*tip, records.collect::<Result<Vec<_>, _>>()?))
        };
        let ask = |client: Client| async move { client.range(first, count).await };
        self.verified.prove(ask, check).await.map_err(|e| self.error(e))
    }

    /// One page of a search. Without `proved` it is what the replica says.
    pub async fn find(
        &self,
        query: &Query,
        from: Option<Cursor>,
        count: usize,
        proved: bool,
    ) -> Result<FoundPage, GridError> {
        let count = |limit: usize| u32::try_from(count.clamp(1, limit)).unwrap_or(1);
        if !proved {
            let count = count(limits::RECORDS_PER_PAGE);
            let asked = self.verified.unproved().query(query, from.as_ref(), count).await;
            let page = asked.map_err(|e| self.error(e))?;
            let things = page.records.into_iter().map(|record| FoundThing { record, capacity: None });
            return Ok(FoundPage { things: things.collect(), next: page.next, tip: None });
        }
        let (count, from) = (count(limits::PROVED_PER_PAGE), &from);
        let ask = |client: Client| async move {
            let Answer { value: page, replica } =
                client.query_proved(query.clone(), from.clone(), count).await?;
            Ok(Answer { value: (page.tip, (page.things, page.next)), replica })
        };
        let check = |tip: &Tip, (things, next): &(Vec<ProvedThing>, Option<Cursor>)| {
            let things =
                things.iter().map(|thing| verify_thing(tip, thing)).collect::<Result<Vec<_>, _>>()?;
            Ok((*tip, things, next.clone()))
        };
        let (tip, bytes, next) = self.verified.prove(ask, check).await.map_err(|e| self.error(e))?;
        let things = bytes.into_iter().map(|(record, capacity)| self.found(record, capacity));
        Ok(FoundPage { things: things.collect::<Result<Vec<_>, _>>()?, next, tip: Some(tip) })
    }

    fn found(&self, record: Vec<u8>, capacity: Option<Vec<u8>>) -> Result<FoundThing, GridError> {
        let capacity = self.decode("a node's capacity", capacity.as_deref())?;
        match self.decode("a record", Some(&record))? {
            Some(record) => Ok(FoundThing { record, capacity }),
            None => Err(self.other_record("what was found")),
        }
    }
}

/// The bytes of a found thing's record, and of its capacity where there is one.
fn verify_thing(tip: &Tip, thing: &ProvedThing) -> Result<(Vec<u8>, Option<Vec<u8>>), LightError> {
    let key = StateKey::Record(thing.id);
    let Some(record) = verify_value(tip, &key, &thing.record)? else {
        let reason = "it is proved that it does not exist".to_owned();
        return Err(LightError::Value { height: tip.height(), key: Box::new(key), reason });
    };
    let capacity = match &thing.capacity {
        Some(proved) => verify_value(tip, &StateKey::Capacity(PublicKey(thing.id.id.0)), proved)?,
        None => None,
    };
    Ok((record, capacity))
}
