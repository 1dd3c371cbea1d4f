//! The keep file, `keep.toml`: a standing order as a person writes it. Unknown fields are refused; the format is
//! [`FORMAT`], which `croft keep --help` prints.

use std::path::{Path, PathBuf};

use croft_market::standing::{REPLICAS, Wanted};
use croft_protocol::{Grains, Name, units};
use serde::Deserialize;

/// Written by hand: what is larger, is another file.
const FILE_BYTES: u64 = 64 * 1024;
/// `NAME-SLOT-GENERATION` must be a name of at most 32 characters.
const NAME_CHARACTERS: usize = 20;
/// Looking after nodes more often than that replaces such as only restart.
const SILENT_LEAST_S: u64 = 60;
const PERIOD_MOST_S: u64 = 366 * 86_400;
const PLACES: usize = 64;

/// The format, for people.
pub const FORMAT: &str = r#"THE KEEP FILE (keep.toml)

  name = "web"                     # contracts are called web-0-1, web-1-1, ...; at most 20 characters
  deploy = "web.toml"              # what runs: a deploy file, beside this one
  replicas = 2                     # on different nodes
  silent = "10m"                   # a node silent, or in trouble, for so long is replaced; default 10m
  start = "15m"                    # how long a new one may take until it runs; default 15m
  renew = "10m"                    # so long before its time is over a successor is ordered; default 10m

  [limits]
  max_price = 300000               # grains for one contract and its whole duration
  budget = 2000000                 # grains in all, within a period
  period = "24h"                   # default 24h
  replacements_per_hour = 3        # because of silence or trouble; default 3

  [placement]                      # instead of the deploy file's
  country = ["be", "nl"]           # default: anywhere
  region = ["flanders"]            # of the farm; default: any
"#;

/// Why a file is no keep file.
#[derive(Debug, thiserror::Error)]
pub enum KeepFileError {
    #[error("there is no keep file {path}: name it, and see its format with 'croft keep --help'")]
    Missing { path: PathBuf },
    #[error("can't read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} has more than {FILE_BYTES} bytes: a keep file is short")]
    TooLarge { path: PathBuf },
    #[error("{path}: {reason}")]
    Syntax { path: PathBuf, reason: String },
    #[error("{path}, {place}: {reason}")]
    Value { path: PathBuf, place: &'static str, reason: String },
}

/// A standing order, checked as far as it goes without its deploy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepFile {
    pub wanted: Wanted,
    /// The deploy file.
    pub deploy: PathBuf,
    /// Instead of the deploy file's, where they are not empty.
    pub countries: Vec<String>,
    pub regions: Vec<Name>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: Name,
    deploy: PathBuf,
    replicas: u32,
    silent: Option<String>,
    start: Option<String>,
    renew: Option<String>,
    limits: RawLimits,
    #[serde(default)]
    placement: RawPlacement,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    max_price: u64,
    budget: u64,
    period: Option<String>,
    replacements_per_hour: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlacement {
    #[serde(default)]
    country: Vec<String>,
    #[serde(default)]
    region: Vec<Name>,
}

impl KeepFile {
    /// Reads and parses a file.
    ///
    /// # Errors
    /// [`KeepFileError`] names file and place.
    pub fn read(path: &Path) -> Result<Self, KeepFileError> {
        use std::io::Read as _;
        let failed = |source| KeepFileError::Read { path: path.to_owned(), source };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(KeepFileError::Missing { path: path.to_owned() });
            }
            Err(e) => return Err(failed(e)),
        };
        let mut text = String::new();
        file.take(FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > FILE_BYTES {
            return Err(KeepFileError::TooLarge { path: path.to_owned() });
        }
        Self::parse(path, &text)
    }

    /// Parses the text of a file; `path` is for messages, and the deploy file is found beside it.
    ///
    /// # Errors
    /// [`KeepFileError`] names file and place.
    pub fn parse(path: &Path, text: &str) -> Result<Self, KeepFileError> {
        let raw: Raw = toml::from_str(text).map_err(|e| {
            let reason = e.message().trim().replace('`', "'").replace('\n', "; ");
            KeepFileError::Syntax { path: path.to_owned(), reason }
        })?;
        let value = |place, reason| KeepFileError::Value { path: path.to_owned(), place, reason };
        let seconds = |place, text: Option<String>, default_s: u64, least_s: u64, most_s: u64| {
            let Some(text) = text else { return Ok(default_s * 1000) };
            let got = units::parse_seconds(&text).map_err(|e| value(place, e.to_string()))?;
            if (least_s..=most_s).contains(&got) {
                return Ok(got * 1000);
            }
            Err(value(place, format!("{got} s; allowed are {least_s} to {most_s} s")))
        };
        if raw.name.as_str().len() > NAME_CHARACTERS {
            let reason = format!("'{}' is too long: use at most {NAME_CHARACTERS} characters", raw.name);
            return Err(value("name", reason));
        }
        if !(0..=REPLICAS).contains(&raw.replicas) {
            return Err(value("replicas", format!("{}; allowed are 0 to {REPLICAS}", raw.replicas)));
        }
        if raw.limits.budget < raw.limits.max_price {
            let reason = format!(
                "{} grains don't pay for one contract at {}: raise it",
                raw.limits.budget, raw.limits.max_price
            );
            return Err(value("[limits] budget", reason));
        }
        for country in &raw.placement.country {
            if !croft_protocol::name::is_country(country) {
                let short: String = country.chars().take(16).collect();
                let reason = format!("'{short}' is not a country: use two lower-case letters of ISO 3166-1");
                return Err(value("[placement] country", reason));
            }
        }
        if raw.placement.country.len() > PLACES || raw.placement.region.len() > PLACES {
            return Err(value("[placement]", format!("at most {PLACES} countries and regions can be named")));
        }
        let deploy = path.parent().map_or_else(|| raw.deploy.clone(), |dir| dir.join(&raw.deploy));
        Ok(Self {
            deploy,
            countries: raw.placement.country,
            regions: raw.placement.region,
            wanted: Wanted {
                replicas: raw.replicas,
                silent_ms: seconds("silent", raw.silent, 600, SILENT_LEAST_S, 7 * 86_400)?,
                start_ms: seconds("start", raw.start, 900, SILENT_LEAST_S, 86_400)?,
                renew_ms: seconds("renew", raw.renew, 600, 0, 30 * 86_400)?,
                max_price: Grains(raw.limits.max_price),
                budget: Grains(raw.limits.budget),
                period_ms: seconds("[limits] period", raw.limits.period, 86_400, 60, PERIOD_MOST_S)?,
                replacements_per_hour: raw.limits.replacements_per_hour.unwrap_or(3),
                name: raw.name,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str =
        "name = \"web\"\ndeploy = \"web.toml\"\nreplicas = 1\n[limits]\nmax_price = 5\nbudget = 10\n";

    fn parse(text: &str) -> Result<KeepFile, String> {
        KeepFile::parse(Path::new("/etc/keep.toml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn the_example_in_the_help_is_a_keep_file() {
        let file = parse(FORMAT.split_once("\n\n").unwrap().1).unwrap();
        assert_eq!((file.wanted.replicas, file.wanted.silent_ms), (2, 600_000));
        assert_eq!((file.wanted.budget, file.wanted.period_ms), (Grains(2_000_000), 86_400_000));
        assert_eq!(file.deploy, Path::new("/etc/web.toml"));
        assert_eq!((file.countries.len(), file.regions[0].as_str()), (2, "flanders"));
    }

    #[test]
    fn what_is_left_open_is_what_the_example_says() {
        let file = parse(LEAST).unwrap();
        let wanted = &file.wanted;
        assert_eq!((wanted.silent_ms, wanted.start_ms, wanted.renew_ms), (600_000, 900_000, 600_000));
        assert_eq!((wanted.period_ms, wanted.replacements_per_hour), (86_400_000, 3));
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let long = "a".repeat(21);
        for (from, to, says) in [
            ("\"web\"", "\"Web\"", "/etc/keep.toml: 'Web' is not a name"),
            ("\"web\"", &format!("\"{long}\""), "name: 'aaaaaaaaaaaaaaaaaaaaa' is too long"),
            ("replicas = 1", "replicas = 65", "replicas: 65; allowed are 0 to 64"),
            ("replicas = 1", "replicas = 1\nsilent = \"5s\"", "silent: 5 s; allowed are 60 to 604800 s"),
            ("budget = 10", "budget = 4", "[limits] budget: 4 grains don't pay for one contract at 5"),
            ("budget = 10", "budgett = 10", "unknown field 'budgett'"),
            (
                "budget = 10",
                "budget = 10\n[placement]\ncountry = [\"Belgium\"]",
                "'Belgium' is not a country",
            ),
        ] {
            let error = parse(&LEAST.replace(from, to)).unwrap_err();
            assert!(error.contains(says), "{to}: {error}");
        }
    }
}
