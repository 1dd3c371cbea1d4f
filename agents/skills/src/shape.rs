//! How a component is nested, looked at before it is compiled.
//!
//! An engine writes out every instance of every nested component: forty of them, each with two of the one before, fit into
//! a kilobyte and stand for a billion. Must never compile anything.

use wasmparser::{Parser, Payload};

use crate::limits::{NESTED_COMPONENTS, NESTED_INSTANCES};

/// Whether a component is small when it is written out.
///
/// # Errors
/// The reason, on one line.
pub(crate) fn check(component: &[u8]) -> Result<(), String> {
    let (mut components, mut instances) = (0, 0);
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(|error| error.to_string())? {
            Payload::ComponentSection { .. } => components += 1,
            Payload::ComponentInstanceSection(section) => {
                instances += usize::try_from(section.count()).unwrap_or(usize::MAX).min(1 << 20);
            }
            _ => {}
        }
        if components > NESTED_COMPONENTS || instances > NESTED_INSTANCES {
            return Err(format!(
                "it nests more than {NESTED_COMPONENTS} components or {NESTED_INSTANCES} instances of them"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn what_would_be_billions_is_refused_before_anybody_counts_them() {
        // Each has two of the one before.
        let mut text = "(component $c0)".to_owned();
        for n in 1..40 {
            let before = n - 1;
            let _ = write!(
                text,
                "(component $c{n} (alias outer $top $c{before} (component $b)) (instance (instantiate $b)) (instance (instantiate $b)))"
            );
        }
        let bytes = wat::parse_str(format!("(component $top {text} (instance (instantiate $c39)))")).unwrap();
        assert!(bytes.len() < 4_096, "{} bytes", bytes.len());
        assert_eq!(check(&bytes).unwrap_err(), "it nests more than 16 components or 24 instances of them");
        assert!(
            check(&wat::parse_str("(component (component $a) (instance (instantiate $a)))").unwrap()).is_ok()
        );
    }
}
