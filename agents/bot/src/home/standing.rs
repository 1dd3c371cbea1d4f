//! Where a standing order keeps its state: one document for each, held by one process at a time.

use std::fs;
use std::io;
use std::path::PathBuf;

use croft_market::standing::Standing;
use croft_protocol::Name;

use super::{Home, HomeError, read, write};
use crate::files;

/// A standing order's state, which no other process can open meanwhile.
#[derive(Debug)]
pub struct KeptOrder {
    path: PathBuf,
    _lock: fs::File,
}

impl Home {
    /// The state of a bot's standing order on a grid; `None` while another process holds it.
    pub fn standing_order(
        &self,
        grid: &Name,
        bot: &Name,
        order: &Name,
    ) -> Result<Option<KeptOrder>, HomeError> {
        let dir = self.grid_dir(grid).join("standing");
        let path = dir.join(format!("{bot}.{order}.json"));
        let lock_path = dir.join(format!("{bot}.{order}.lock"));
        let failed = |source| HomeError::Write { path: lock_path.clone(), source };
        files::make_dirs(&dir).map_err(failed)?;
        let lock = files::lock_file(&lock_path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(KeptOrder { path, _lock: lock })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

impl KeptOrder {
    /// What an earlier run wrote; nothing is kept where there was none.
    pub fn read(&self) -> Result<Standing, HomeError> {
        let Some(bytes) = read(&self.path)? else { return Ok(Standing::default()) };
        serde_json::from_slice(&bytes)
            .map_err(|e| HomeError::Damaged { path: self.path.clone(), reason: e.to_string() })
    }

    /// Durable when it returns.
    pub fn write(&self, standing: &Standing) -> Result<(), HomeError> {
        let bytes = serde_json::to_vec_pretty(standing)
            .map_err(|e| HomeError::Write { path: self.path.clone(), source: io::Error::other(e) })?;
        write(&self.path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_kept_by_one_process_and_its_state_outlives_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let [grid, bot, order] = ["demo", "alice", "web"].map(|name| Name::new(name).unwrap());
        let first = home.standing_order(&grid, &bot, &order).unwrap().unwrap();
        assert!(home.standing_order(&grid, &bot, &order).unwrap().is_none());
        assert_eq!(first.read().unwrap(), Standing::default());
        first.write(&Standing::default()).unwrap();
        drop(first);
        let again = home.standing_order(&grid, &bot, &order).unwrap().unwrap();
        assert_eq!(again.read().unwrap(), Standing::default());
        fs::write(&again.path, "{\"slots\": 5}").unwrap();
        let error = again.read().unwrap_err().to_string();
        assert!(error.contains("alice.web.json is not what croft wrote there"), "{error}");
    }
}
