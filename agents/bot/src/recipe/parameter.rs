//! One parameter: what may be given for it.

use std::path::PathBuf;

use croft_protocol::units;
use serde::{Deserialize, Serialize};
use toml::Value;

use super::{Filling, SecretValue, bounded, parse_bytes, parse_seconds, said};

/// Longest text that a parameter takes unless it says otherwise, and at all.
const TEXT_LENGTH: u64 = 256;
const TEXT_LENGTH_LIMIT: u64 = 4096;
const DESCRIPTION_BYTES: usize = 512;
const CHOICES: usize = 64;
/// A secret that is made for each deployment.
const GENERATE: &str = "generate";

/// What a parameter takes. Bounds are inclusive; sizes in bytes, durations in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Kind {
    Text {
        max_length: u64,
    },
    Integer {
        #[serde(skip_serializing_if = "Option::is_none")]
        min: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        max: Option<i64>,
    },
    Port,
    Size {
        #[serde(skip_serializing_if = "Option::is_none")]
        min: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        max: Option<u64>,
    },
    Duration {
        #[serde(skip_serializing_if = "Option::is_none")]
        min: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        max: Option<u64>,
    },
    Choice {
        choices: Vec<String>,
    },
    Secret,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Parameter {
    #[serde(flatten)]
    pub kind: Kind,
    pub description: String,
    /// What is taken where nothing is given; `None`: it must be given.
    pub default: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawKind {
    Text,
    Integer,
    Port,
    Size,
    Duration,
    Choice,
    Secret,
}

/// A text, or a number that stands for its digits.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or a number")]
enum Written {
    Text(String),
    Number(i64),
}

impl Written {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    r#type: RawKind,
    #[serde(default)]
    description: String,
    default: Option<Written>,
    max_length: Option<u64>,
    min: Option<Written>,
    max: Option<Written>,
    choices: Option<Vec<String>>,
}

impl Parameter {
    pub(super) fn parse(value: Value) -> Result<Self, String> {
        let raw: Raw = value.try_into().map_err(|e: toml::de::Error| said(&e))?;
        if raw.description.len() > DESCRIPTION_BYTES {
            return Err(format!("description: at most {DESCRIPTION_BYTES} bytes are allowed"));
        }
        let allowed: &[&str] = match raw.r#type {
            RawKind::Text => &["max_length"],
            RawKind::Integer | RawKind::Size | RawKind::Duration => &["min", "max"],
            RawKind::Choice => &["choices"],
            RawKind::Port | RawKind::Secret => &[],
        };
        let written = [
            ("max_length", raw.max_length.is_some()),
            ("min", raw.min.is_some()),
            ("max", raw.max.is_some()),
            ("choices", raw.choices.is_some()),
        ];
        if let Some((idle, _)) = written.iter().find(|(name, is)| *is && !allowed.contains(name)) {
            return Err(format!("{idle} means nothing for this type: remove it"));
        }
        let bounds = (raw.min.map(Written::text), raw.max.map(Written::text));
        let kind = kind(&raw.r#type, raw.max_length, bounds, raw.choices)?;
        let default = raw.default.map(Written::text);
        let parameter = Self { kind, description: raw.description, default };
        if let Some(default) = &parameter.default {
            if parameter.kind == Kind::Secret && default != GENERATE {
                // Whatever else it named would be a file or a variable of whoever deploys it.
                return Err(format!("the default of a secret is '{GENERATE}' or nothing"));
            }
            parameter.filling(default).map_err(|reason| format!("default: {reason}"))?;
        }
        Ok(parameter)
    }

    /// Whether the value asks for a secret to be made.
    pub(super) fn is_generated(&self, value: &str) -> bool {
        self.kind == Kind::Secret && value == GENERATE
    }

    /// What a value puts into the places, if it is allowed.
    pub(super) fn filling(&self, value: &str) -> Result<Filling, String> {
        match &self.kind {
            Kind::Text { max_length } => {
                if value.len() as u64 > *max_length {
                    return Err(format!(
                        "{} bytes are too long: at most {max_length} are allowed",
                        value.len()
                    ));
                }
                if value.chars().any(char::is_control) {
                    return Err("a text has one line and no control characters".to_owned());
                }
                Ok(Filling::Text(value.to_owned()))
            }
            Kind::Integer { min, max } => {
                let number: i64 = value.parse().map_err(|_| format!("'{}' is no integer", shown(value)))?;
                if let Some(min) = min.filter(|min| number < *min) {
                    return Err(format!("{number} is too small: at least {min} is allowed"));
                }
                if let Some(max) = max.filter(|max| number > *max) {
                    return Err(format!("{number} is too large: at most {max} is allowed"));
                }
                Ok(Filling::Number(number))
            }
            Kind::Port => match value.parse::<u16>() {
                Ok(port) if port > 0 => Ok(Filling::Number(i64::from(port))),
                _ => Err(format!("'{}' is no port: 1 to 65535 are allowed", shown(value))),
            },
            Kind::Size { min, max } => {
                bounded("the size", parse_bytes(value)?, *min, *max, units::show_bytes)?;
                Ok(Filling::Text(value.to_owned()))
            }
            Kind::Duration { min, max } => {
                bounded("the duration", parse_seconds(value)?, *min, *max, crate::terminal::show_duration)?;
                Ok(Filling::Text(value.to_owned()))
            }
            Kind::Choice { choices } => {
                if choices.iter().any(|choice| choice == value) {
                    Ok(Filling::Text(value.to_owned()))
                } else {
                    Err(format!("'{}' is none of {}", shown(value), choices.join(", ")))
                }
            }
            Kind::Secret => secret(value).map(Filling::Secret),
        }
    }

    /// What may be given, for people.
    #[must_use]
    pub fn takes(&self) -> String {
        fn range<T>(what: &str, min: Option<T>, max: Option<T>, show: impl Fn(T) -> String) -> String {
            match (min.map(&show), max.map(&show)) {
                (Some(min), Some(max)) => format!("{what}, {min} to {max}"),
                (Some(min), None) => format!("{what}, {min} or more"),
                (None, Some(max)) => format!("{what}, at most {max}"),
                (None, None) => what.to_owned(),
            }
        }
        match &self.kind {
            Kind::Text { .. } => "text".to_owned(),
            Kind::Integer { min, max } => range("integer", *min, *max, |n| n.to_string()),
            Kind::Port => "port".to_owned(),
            Kind::Size { min, max } => range("size", *min, *max, units::show_bytes),
            Kind::Duration { min, max } => range("duration", *min, *max, crate::terminal::show_duration),
            Kind::Choice { choices } => {
                choices.iter().map(|c| crate::terminal::printable(c)).collect::<Vec<_>>().join(" | ")
            }
            Kind::Secret => "secret".to_owned(),
        }
    }

    /// The default, or something that is allowed.
    pub(super) fn sample(&self) -> String {
        if let Some(default) = &self.default {
            return default.clone();
        }
        match &self.kind {
            Kind::Text { max_length } => "sample".chars().take(*max_length as usize).collect(),
            Kind::Integer { min, max } => min.or(*max).unwrap_or(1).to_string(),
            Kind::Port => "8080".to_owned(),
            Kind::Size { min, max } => min.or(*max).unwrap_or(64 << 20).to_string(),
            Kind::Duration { min, max } => format!("{}s", min.or(*max).unwrap_or(3600)),
            Kind::Choice { choices } => choices[0].clone(),
            Kind::Secret => GENERATE.to_owned(),
        }
    }
}

fn kind(
    raw: &RawKind,
    max_length: Option<u64>,
    (min, max): (Option<String>, Option<String>),
    choices: Option<Vec<String>>,
) -> Result<Kind, String> {
    fn both<T: PartialOrd>(
        (min, max): (Option<String>, Option<String>),
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<(Option<T>, Option<T>), String> {
        let min = min.map(|text| parse(&text).map_err(|e| format!("min: {e}"))).transpose()?;
        let max = max.map(|text| parse(&text).map_err(|e| format!("max: {e}"))).transpose()?;
        if matches!((&min, &max), (Some(min), Some(max)) if min > max) {
            return Err("min is more than max: nothing is allowed".to_owned());
        }
        Ok((min, max))
    }
    Ok(match raw {
        RawKind::Text => match max_length.unwrap_or(TEXT_LENGTH) {
            max_length @ 1..=TEXT_LENGTH_LIMIT => Kind::Text { max_length },
            _ => return Err(format!("max_length: 1 to {TEXT_LENGTH_LIMIT} are allowed")),
        },
        RawKind::Integer => {
            let integer = |text: &str| text.parse().map_err(|_| format!("'{}' is no integer", shown(text)));
            let (min, max) = both((min, max), integer)?;
            Kind::Integer { min, max }
        }
        RawKind::Port => Kind::Port,
        RawKind::Size => {
            let (min, max) = both((min, max), parse_bytes)?;
            Kind::Size { min, max }
        }
        RawKind::Duration => {
            let (min, max) = both((min, max), parse_seconds)?;
            Kind::Duration { min, max }
        }
        RawKind::Choice => {
            let choices = choices.unwrap_or_default();
            if choices.is_empty() || choices.len() > CHOICES {
                return Err(format!("choices: 1 to {CHOICES} are allowed, not {}", choices.len()));
            }
            if choices.iter().any(|choice| choice.chars().any(char::is_control)) {
                return Err("choices: one line each, without control characters".to_owned());
            }
            Kind::Choice { choices }
        }
        RawKind::Secret => Kind::Secret,
    })
}

fn secret(value: &str) -> Result<SecretValue, String> {
    match value.split_once(':') {
        Some(("env", variable)) if !variable.is_empty() => Ok(SecretValue::Env(variable.to_owned())),
        Some(("file", path)) if !path.is_empty() => Ok(SecretValue::File(PathBuf::from(path))),
        // Only to try whether it could be deployed; where it is made, the deployer's bot says.
        None if value == GENERATE => Ok(SecretValue::Env(GENERATE.to_owned())),
        // What was given may be the secret itself: it is not repeated.
        _ => Err("a secret is given as env:VARIABLE, file:PATH or generate, never by itself".to_owned()),
    }
}

fn shown(text: &str) -> String {
    crate::terminal::printable(&text.chars().take(64).collect::<String>())
}
