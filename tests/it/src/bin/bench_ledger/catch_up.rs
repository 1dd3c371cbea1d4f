//! A replica that was away: how fast it gets level again, while the others serve.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use crate::grid::{Grid, REPLICAS};
use crate::load::Crowd;
use croft_it::report::Row;

/// Level within this, or it is no catching up.
const LEVEL: Duration = Duration::from_secs(300);
/// The records that it misses are made within this.
const MADE: Duration = Duration::from_secs(300);

/// Stops the last replica, makes records without it, starts it again.
pub(crate) async fn rows(grid: &mut Grid, crowd: &mut Crowd, records: usize) -> Result<Vec<Row>> {
    let away = REPLICAS - 1;
    grid.stop_replica(away).await?;
    let others: Vec<usize> = (0..away).collect();
    let before = grid.status(0).await?;
    crowd.make(records, &others, MADE).await?;
    let after = grid.status(0).await?;
    let (missed, blocks) = (after.records - before.records, after.height - before.height);
    let started = Instant::now();
    grid.start_replica(away).await?;
    let serves = Instant::now();
    let level = grid.wait_for_records(away, after.records, LEVEL).await?;
    grid.wait_for_links().await?;
    let seconds = level.saturating_duration_since(serves).as_secs_f64().max(1e-3);
    let row =
        Row::new("catch-up of a replica that was away", missed as f64 / seconds, "records/s").note(format!(
            "{missed} records in {blocks} blocks: serves again after {:.1} s, level {seconds:.1} s later",
            (serves - started).as_secs_f64()
        ));
    Ok(vec![row])
}
