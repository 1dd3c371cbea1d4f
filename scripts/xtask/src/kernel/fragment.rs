//! Kernel configuration fragments: what was asked for, and whether the result has it.
//!
//! Kconfig drops a requested value without a word when a dependency is missing, a name is
//! misspelt or a symbol went away. This module must never let such a loss pass: every line of
//! every fragment is either granted or named.

use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

/// What a symbol is set to: the text after `=`, or nothing for "is not set".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    NotSet,
    Set(String),
}

/// One line of a fragment that asks for something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// With the `CONFIG_` prefix.
    pub(crate) symbol: String,
    pub(crate) value: Value,
    /// As shown to people: relative to the source tree.
    pub(crate) file: String,
    /// Counted from 1.
    pub(crate) line: usize,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Value::Set(value) => write!(f, "{}:{}: {}={value}", self.file, self.line, self.symbol),
            Value::NotSet => write!(f, "{}:{}: # {} is not set", self.file, self.line, self.symbol),
        }
    }
}

/// Why a set of fragments can't be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum FragmentError {
    #[error("{file}:{line}: `{text}` is neither a value, nor `# CONFIG_X is not set`, nor a comment")]
    Malformed { file: String, line: usize, text: String },
    #[error("{file}:{line}: {symbol}=m asks for a module, but Croft's kernels have none: write =y")]
    Module { file: String, line: usize, symbol: String },
    #[error("{second} repeats {first}: keep one of the two")]
    Repeated { first: String, second: String },
}

/// Reads one fragment. `file` is the name that messages show.
pub(crate) fn parse(file: &str, text: &str) -> Result<Vec<Request>, FragmentError> {
    let mut requests = Vec::new();
    for (index, raw) in text.lines().enumerate() {
        let line = index + 1;
        let malformed = || FragmentError::Malformed { file: file.to_owned(), line, text: raw.to_owned() };
        let Some((symbol, value)) = parse_line(raw).map_err(|()| malformed())? else { continue };
        if value == Value::Set("m".to_owned()) {
            return Err(FragmentError::Module { file: file.to_owned(), line, symbol: symbol.to_owned() });
        }
        requests.push(Request { symbol: symbol.to_owned(), value, file: file.to_owned(), line });
    }
    Ok(requests)
}

/// `Ok(None)` for blank lines and comments, `Err` for what Kconfig would skip silently.
fn parse_line(raw: &str) -> Result<Option<(&str, Value)>, ()> {
    if let Some(symbol) = raw.strip_prefix("# CONFIG_").and_then(|rest| rest.strip_suffix(" is not set")) {
        let whole = &raw[2..2 + "CONFIG_".len() + symbol.len()];
        return if is_symbol(whole) { Ok(Some((whole, Value::NotSet))) } else { Err(()) };
    }
    // `#CONFIG_X=y` and `# CONFIG_X=y` look like requests and are none.
    if let Some(comment) = raw.strip_prefix('#') {
        return if comment.trim_start().starts_with("CONFIG_") { Err(()) } else { Ok(None) };
    }
    if raw.is_empty() {
        return Ok(None);
    }
    let (symbol, value) = raw.split_once('=').ok_or(())?;
    if !is_symbol(symbol) || value.is_empty() || value.trim() != value {
        return Err(());
    }
    Ok(Some((symbol, if value == "n" { Value::NotSet } else { Value::Set(value.to_owned()) })))
}

fn is_symbol(text: &str) -> bool {
    let name = text.strip_prefix("CONFIG_").unwrap_or_default();
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// All requests of all fragments, in order; no symbol twice, since the last one would win silently.
pub(crate) fn combine(fragments: &[(String, String)]) -> Result<Vec<Request>, FragmentError> {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut all = Vec::new();
    for (file, text) in fragments {
        for request in parse(file, text)? {
            if let Some(first) = seen.insert(request.symbol.clone(), request.to_string()) {
                return Err(FragmentError::Repeated { first, second: request.to_string() });
            }
            all.push(request);
        }
    }
    Ok(all)
}

/// A request that the configuration does not grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) request: Request,
    pub(crate) found: Found,
}

/// What stands in the result instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// No line at all: a dependency is missing, or there is no such symbol.
    Absent,
    /// Offered, but switched off.
    NotSet,
    Other(String),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, but the result ", self.request)?;
        match &self.found {
            Found::Absent => {
                write!(f, "doesn't have it: a dependency is missing, or this kernel has no such symbol")
            }
            Found::NotSet => write!(f, "has it switched off"),
            Found::Other(value) => write!(f, "has {value}"),
        }
    }
}

/// A `.config` as written by Kconfig.
pub(crate) struct Configuration(BTreeMap<String, Value>);

impl Configuration {
    pub(crate) fn parse(text: &str) -> Self {
        let mut values = BTreeMap::new();
        for line in text.lines() {
            // Kconfig's own output: what is neither a value nor "is not set" is a heading.
            if let Ok(Some((symbol, value))) = parse_line(line) {
                values.insert(symbol.to_owned(), value);
            }
        }
        Self(values)
    }

    /// Every request that the configuration does not grant, in the order of the fragments.
    #[must_use]
    pub(crate) fn missing(&self, requests: &[Request]) -> Vec<Missing> {
        let lacks = |request: &Request| {
            let found = match (&request.value, self.0.get(&request.symbol)) {
                (wanted, Some(actual)) if wanted == actual => return None,
                (Value::NotSet, None) => return None,
                (Value::Set(_), None) => Found::Absent,
                (_, Some(Value::NotSet)) => Found::NotSet,
                (_, Some(Value::Set(value))) => Found::Other(value.clone()),
            };
            Some(Missing { request: request.clone(), found })
        };
        requests.iter().filter_map(lacks).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(text: &str) -> Vec<Request> {
        parse("node/base.config", text).unwrap()
    }

    #[test]
    fn granted_values_are_not_missing() {
        let wanted = requests("CONFIG_A=y\nCONFIG_B=\"x y\"\nCONFIG_C=512\n# CONFIG_D is not set\n");
        let result = Configuration::parse("# heading\nCONFIG_C=512\nCONFIG_B=\"x y\"\nCONFIG_A=y\n");
        assert_eq!(result.missing(&wanted), []);
    }

    #[test]
    fn a_dropped_value_is_named_with_file_line_and_what_came_instead() {
        let wanted = requests("# a reason\nCONFIG_A=y\n\nCONFIG_B=4\nCONFIG_C=y\n# CONFIG_D is not set\n");
        let result = Configuration::parse("CONFIG_B=8\n# CONFIG_C is not set\nCONFIG_D=y\n");
        let told: Vec<String> = result.missing(&wanted).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "node/base.config:2: CONFIG_A=y, but the result doesn't have it: a dependency is missing, \
                 or this kernel has no such symbol",
                "node/base.config:4: CONFIG_B=4, but the result has 8",
                "node/base.config:5: CONFIG_C=y, but the result has it switched off",
                "node/base.config:6: # CONFIG_D is not set, but the result has y",
            ]
        );
    }

    #[test]
    fn a_longer_symbol_does_not_grant_a_shorter_one() {
        let result = Configuration::parse("CONFIG_NF_TABLES_INET=y\n");
        assert_eq!(result.missing(&requests("CONFIG_NF_TABLES=y\n")).len(), 1);
    }

    #[test]
    fn lines_that_kconfig_would_skip_silently_are_refused() {
        let bad = [
            "CONFIG_A = y",
            "CONFIG_A=y ",
            "CONFIG_A=",
            "CONFIG_A",
            " CONFIG_A=y",
            "#CONFIG_A=y",
            "A=y",
            "CONFIG_A-B=y",
        ];
        for text in bad {
            let error = parse("f", text).unwrap_err();
            assert!(error.to_string().starts_with("f:1: `"), "{text}: {error}");
        }
        assert!(parse("f", "# CONFIG_A is not set ").is_err());
    }

    #[test]
    fn a_module_is_refused() {
        let error = parse("f", "\nCONFIG_A=m\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "f:2: CONFIG_A=m asks for a module, but Croft's kernels have none: write =y"
        );
    }

    #[test]
    fn n_means_not_set() {
        assert_eq!(requests("CONFIG_A=n\n")[0].value, Value::NotSet);
    }

    #[test]
    fn a_symbol_that_two_fragments_ask_for_is_refused_with_both_places() {
        let fragments = [
            ("a".to_owned(), "CONFIG_X=y\n".to_owned()),
            ("b".to_owned(), "# CONFIG_X is not set\n".to_owned()),
        ];
        let error = combine(&fragments).unwrap_err();
        assert_eq!(
            error.to_string(),
            "b:1: # CONFIG_X is not set repeats a:1: CONFIG_X=y: keep one of the two"
        );
    }
}
