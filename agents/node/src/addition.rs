//! The farm's addition, wherever it is: on the medium, else on the network.
//!
//! ```text
//!   looking at disks ──one checks──────────────────────────────> found (the network is not asked)
//!        │ none for a while
//!        └─> looking at disks and on the network ──one checks──> found, whatever else does not check
//!                                                ──two differ──> ambiguous
//!                                                ──time is over> refused, or none, with every reason
//! ```
//! A medium in the machine comes first: whoever plugs it in stands before the machine, while anybody can answer on a
//! wire. What can be taken out counts at once, a built-in disk only after sticks had time to show up: it may have another
//! farm's of old. It must never choose between two additions that differ, and never take one that does not check.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use croft_network::{Network, NetworkConfig, WaitLimits};
use croft_protocol::addition::{InvalidAddition, Validated};
use tokio::time::{Instant, sleep};

use crate::medium::{self, Looker, MediumError, Roots};
use crate::netboot::{self, Round};

/// Disks alone are looked at for this long. USB sticks that a machine booted from are there by then.
const DISKS_FIRST: Duration = Duration::from_secs(5);
/// What can be taken out and does not answer is waited for so long.
const SLOW_MEDIUM: Duration = Duration::from_secs(20);
/// After this, what was found is said and the node starts anew; slow controllers and DHCP servers are up by then.
const PATIENCE: Duration = Duration::from_secs(45);
const PAUSE: Duration = Duration::from_millis(500);

/// Why no addition was found.
#[derive(Debug, thiserror::Error)]
pub enum AdditionError {
    #[error(
        "no disk and no server has a farm's addition, and the image has no boot configuration: make a medium or a netboot folder with 'croft farm image', and boot from it (disks: {disks}; network: {network})"
    )]
    None { disks: String, network: String },
    #[error("the farm's addition on {disk} is refused")]
    Refused { disk: PathBuf, source: Box<InvalidAddition> },
    #[error(
        "the additions on {one} and on {other} are not the same: take out the medium, or stop the server, that is not this machine's"
    )]
    Ambiguous { one: String, other: String },
}

/// An addition, and the network that was started to find it.
#[derive(Debug)]
pub struct Found {
    pub place: String,
    /// Name of the disk that it is on, such as `sda1`; none where a server had it.
    pub disk: Option<String>,
    pub addition: Validated,
    pub network: Option<Network>,
}

/// Looks until there is one, or the time is over.
///
/// # Errors
/// [`AdditionError`] says what is on the disks and on the network, and what to do.
pub async fn find(roots: Roots) -> Result<Found, AdditionError> {
    let started = Instant::now();
    let mut looker = Looker::new(roots.clone());
    let mut said = BTreeSet::new();
    loop {
        let listed = started.elapsed();
        let on_disks = disks(&mut looker, &mut said).await?;
        // A stick or a disc that is slow may be what the machine was booted from.
        let waits =
            looker.unanswered().any(|disk| medium::is_removable(&roots, disk)) && listed < SLOW_MEDIUM;
        if let Disks::Found(place, addition) = on_disks {
            let is_removable = medium::is_removable(&roots, Path::new(&place));
            if !waits && (is_removable || listed >= DISKS_FIRST) {
                let disk = name_of(&place);
                return Ok(Found { place, disk, addition: *addition, network: None });
            }
        } else if !waits && listed >= DISKS_FIRST {
            break;
        }
        sleep(PAUSE).await;
    }
    tracing::info!("no disk has a farm's addition: asking the network where this machine would boot from");
    let network = match Network::start(NetworkConfig::default()).await {
        Ok(network) => Some(network),
        Err(error) => {
            tracing::error!(error = crate::ledger::chain_of(&error), "the network can't be started");
            None
        }
    };
    let mut asked = String::new();
    loop {
        let round = match &network {
            Some(network) => {
                // Each round says itself what is missing.
                let _ = network.wait_uplink(WaitLimits::default()).await;
                netboot::look(network).await
            }
            None => Round { found: Vec::new(), reasons: vec!["it can't be started".to_owned()] },
        };
        let reasons = round.reasons.join(", ");
        let on_disks = disks(&mut looker, &mut said).await?;
        let on_disk = if let Disks::Found(place, _) = &on_disks { name_of(place) } else { None };
        let why_none = match &on_disks {
            Disks::Refused(disk, source) => {
                AdditionError::Refused { disk: disk.clone(), source: source.clone() }
            }
            Disks::None(looked) => AdditionError::None { disks: looked.clone(), network: reasons.clone() },
            Disks::Found(..) => AdditionError::None { disks: String::new(), network: String::new() },
        };
        if let Some((place, addition)) = choose(on_disks, round.found)? {
            return Ok(Found { place, disk: on_disk, addition, network });
        }
        if started.elapsed() >= PATIENCE {
            return Err(why_none);
        }
        if reasons != asked {
            tracing::warn!(reason = reasons, "no farm's addition on the network yet");
            asked = reasons;
        }
        sleep(PAUSE).await;
    }
}

/// What the disks have.
enum Disks {
    Found(String, Box<Validated>),
    /// One that does not check, and none that does.
    Refused(PathBuf, Box<InvalidAddition>),
    None(String),
}

/// `sda1` of `/dev/sda1`.
fn name_of(place: &str) -> Option<String> {
    std::path::Path::new(place).file_name().map(|name| name.to_string_lossy().into_owned())
}

/// `said` is what was refused before: each reason is told once, at once.
async fn disks(looker: &mut Looker, said: &mut BTreeSet<String>) -> Result<Disks, AdditionError> {
    match looker.look().await {
        Ok((disk, addition)) => Ok(Disks::Found(disk.display().to_string(), Box::new(addition))),
        Err(MediumError::None { looked }) => Ok(Disks::None(looked)),
        Err(MediumError::Refused { disk, source }) => {
            let error = AdditionError::Refused { disk: disk.clone(), source: source.clone() };
            let reason = crate::ledger::chain_of(&error);
            if !said.contains(&reason) {
                tracing::error!("{reason}");
                said.insert(reason);
            }
            Ok(Disks::Refused(disk, source))
        }
        Err(MediumError::Ambiguous { one, other }) => {
            let (one, other) = (one.display().to_string(), other.display().to_string());
            Err(AdditionError::Ambiguous { one, other })
        }
    }
}

/// The one addition of all that were found, or none, or the two that differ.
fn choose(
    disks: Disks,
    found: Vec<(String, Validated)>,
) -> Result<Option<(String, Validated)>, AdditionError> {
    let on_disk = if let Disks::Found(place, addition) = disks { Some((place, *addition)) } else { None };
    let mut all = on_disk.into_iter().chain(found);
    let Some((one, addition)) = all.next() else { return Ok(None) };
    match all.find(|(_, other)| other.get() != addition.get()) {
        Some((other, _)) => Err(AdditionError::Ambiguous { one, other }),
        None => Ok(Some((one, addition))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::medium::testing::sealed;
    use croft_protocol::addition::Expectation;

    fn valid(farm: &str) -> Validated {
        Validated::open(&sealed(farm).1, &Expectation::default()).unwrap()
    }

    #[test]
    fn one_addition_in_several_places_counts_once_and_two_that_differ_count_for_nothing() {
        let disk = |farm| Disks::Found("/dev/sda".to_owned(), Box::new(valid(farm)));
        let server = |farm| vec![("http://192.0.2.1/farm.bin".to_owned(), valid(farm))];
        let nothing = || Disks::None("there is no disk".to_owned());
        assert!(choose(nothing(), Vec::new()).unwrap().is_none());
        assert_eq!(choose(nothing(), server("attic")).unwrap().unwrap().0, "http://192.0.2.1/farm.bin");
        assert_eq!(choose(disk("attic"), server("attic")).unwrap().unwrap().0, "/dev/sda");
        let two = choose(disk("attic"), server("cellar")).unwrap_err().to_string();
        assert_eq!(
            two,
            "the additions on /dev/sda and on http://192.0.2.1/farm.bin are not the same: take out the medium, or stop the server, that is not this machine's"
        );
        let servers = server("attic").into_iter().chain(server("cellar")).collect();
        assert!(matches!(choose(nothing(), servers), Err(AdditionError::Ambiguous { .. })));
    }
}
