//! `croft farm verify`: what a node's trust stands on, weighed here and not by the validators.
//!
//! ```text
//!   record, quote, policy, validators, releases ── proved ─┐
//!   the header that the quote names ── certified ──────────┴──▶ croft_attest::review ──▶ does the ledger's class hold?
//! ```
//! It must never say that a class holds which it could not follow, nor one that is stale.

use croft_attest::review::{Check, Checked, Evidence, Review, review};
use croft_protocol::record::TrustClass;
use croft_protocol::trust::Endorsement;
use croft_protocol::{Hash, Name, NodeId, ReleaseVersion};
use serde::Serialize;

use super::{CommandError, Context, show};
use crate::exit::Failure;
use crate::grid::Attested;
use crate::terminal::{printable, push, show_duration, show_time};

#[derive(Debug, thiserror::Error)]
enum VerifyError {
    #[error("the ledger says that node '{node}' is {ledger}, but what it shows is worth {found}: {reasons}")]
    Differs { node: Name, ledger: &'static str, found: &'static str, reasons: String },
    #[error(
        "node '{node}' is {class} by a quote that is {age} old, and stale after {limit}: a running node quotes anew every \
         few hours, so ask its farmer to look at its TPM or to restart it"
    )]
    Stale { node: Name, class: &'static str, age: String, limit: String },
}

#[derive(Serialize)]
struct ReleaseName {
    channel: Name,
    version: ReleaseVersion,
}

/// Of a node whose TPM ever spoke for it.
#[derive(Serialize)]
struct QuoteView {
    /// Of the header in its nonce.
    height: u64,
    time_ms: u64,
    age_s: u64,
    stale_after_s: u64,
    /// Of the block that took it.
    taken: u64,
    key: Hash,
    endorsement_key: Option<Hash>,
}

#[derive(Serialize)]
struct View {
    node: Name,
    id: NodeId,
    farm: Name,
    /// Whether the ledger's class follows from what was proved, and is not stale.
    holds: bool,
    class: TrustClass,
    ledger_class: TrustClass,
    stale: bool,
    quote: Option<QuoteView>,
    /// Authenticode SHA-256 of the boot file that runs, where it is known.
    boot_file: Option<Hash>,
    /// What it is called in the channel that the farm follows.
    release: Option<ReleaseName>,
    secure_boot: Option<bool>,
    endorsement: Option<Endorsement>,
    checks: Vec<Checked>,
    tip_height: u64,
}

pub(super) async fn verify(c: &mut Context<'_>, (farm, node): (Name, Name)) -> Result<(), Failure> {
    let grid = c.reading_grid()?;
    let missing = || CommandError::NoFarm { farm: farm.clone(), grid: grid.name().clone() };
    let (farm_id, _) = grid.farm_named(&farm).await?.ok_or_else(|| Failure::not_found(missing()))?;
    let missing = || CommandError::NoNode { farm: farm.clone(), node: node.clone() };
    let id = grid.node_named(&farm_id, &node).await?.ok_or_else(|| Failure::not_found(missing()))?;
    let attested = grid.attested(id).await?.ok_or_else(|| Failure::not_found(missing()))?;
    let chain = grid.pin().chain;
    grid.close().await;
    let evidence = Evidence {
        chain: &chain,
        node: &id,
        body: &attested.body,
        known: attested.known.as_ref().map(|(trust, quote)| (trust, quote)),
        header: attested.header,
    };
    let view = view((farm, node, id), &attested, review(&evidence, &attested.policy));
    c.terminal.result(&view, text)?;
    refusal(&view).map_or(Ok(()), |error| Err(Failure::refused(error)))
}

fn view((farm, node, id): (Name, Name, NodeId), attested: &Attested, review: Review) -> View {
    let now_ms = attested.tip.time_ms();
    let policy = &attested.trust_policy;
    let quote = attested.known.as_ref().map(|(trust, quote)| QuoteView {
        height: quote.header.height,
        time_ms: quote.header.time_ms,
        age_s: now_ms.saturating_sub(quote.header.time_ms) / 1000,
        stale_after_s: policy.stale_after_s,
        taken: quote.height,
        key: trust.key,
        endorsement_key: review.assessment.as_ref().and_then(|assessment| assessment.endorsement_key),
    });
    // `plain` promises nothing that could grow old.
    let stale = review.class > TrustClass::Plain
        && quote.as_ref().is_some_and(|quote| policy.is_stale(quote.time_ms, now_ms));
    let assessment = review.assessment.as_ref();
    let boot_file = assessment.and_then(|assessment| assessment.release);
    let release = boot_file.and_then(|file| attested.release_of(file));
    View {
        node,
        id,
        farm,
        holds: review.agrees() && !stale,
        class: review.class,
        ledger_class: review.ledger,
        stale,
        quote,
        boot_file,
        release: release
            .map(|release| ReleaseName { channel: release.channel.clone(), version: release.version }),
        secure_boot: assessment.and_then(|assessment| assessment.secure_boot),
        endorsement: assessment.map(|assessment| assessment.endorsement),
        checks: review.checks,
        tip_height: attested.tip.height(),
    }
}

fn refusal(view: &View) -> Option<VerifyError> {
    let node = view.node.clone();
    if view.class != view.ledger_class {
        let failed = view.checks.iter().filter(|checked| checked.passed == Some(false));
        let reasons = failed.map(|checked| checked.detail.as_str()).collect::<Vec<_>>().join("; ");
        let reasons = if reasons.is_empty() {
            "every check passed, so the ledger makes less of it: the node may register again".to_owned()
        } else {
            printable(&reasons)
        };
        let (ledger, found) = (show::trust(view.ledger_class), show::trust(view.class));
        return Some(VerifyError::Differs { node, ledger, found, reasons });
    }
    let quote = view.quote.as_ref().filter(|_| view.stale)?;
    let (age, limit) = (show_duration(quote.age_s), show_duration(quote.stale_after_s));
    Some(VerifyError::Stale { node, class: show::trust(view.class), age, limit })
}

fn label(check: Check) -> &'static str {
    match check {
        Check::Quote => "quote",
        Check::Signature => "signature",
        Check::Nonce => "nonce",
        Check::Header => "header",
        Check::Fresh => "fresh",
        Check::Statement => "statement",
        Check::Replay => "event log",
        Check::BootFile => "boot file",
        Check::Measurements => "measurements",
        Check::Options => "options",
        Check::SecureBoot => "Secure Boot",
        Check::Endorsement => "endorsement",
        Check::Key => "key",
    }
}

fn text(v: &View) -> String {
    let class = show::trust(v.class);
    let mut t = format!("node '{}' of farm '{}' is {class}", v.node, v.farm);
    if let Some(quote) = &v.quote {
        let stale = if v.stale { ", which is stale" } else { "" };
        push!(t, ", by a quote of {} ({} ago{stale})", show_time(quote.time_ms), show_duration(quote.age_s));
    }
    if v.class == v.ledger_class {
        t.push_str("\nthe ledger says so too\n");
    } else {
        push!(t, "\nthe ledger says that it is {}\n", show::trust(v.ledger_class));
    }
    for checked in &v.checks {
        let mark = match checked.passed {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        push!(t, "  {mark:<4} {:<13} {}\n", label(checked.check), printable(&checked.detail));
        if let (Check::BootFile, Some(release)) = (checked.check, &v.release) {
            push!(t, "  {:18} release {} of channel '{}'\n", "", release.version, release.channel);
        }
    }
    t
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As of a node that was attested so long ago.
    fn view(age_s: u64, checks: Vec<Checked>) -> View {
        let (node, farm) = (Name::new("n1").unwrap(), Name::new("attic").unwrap());
        let quote = QuoteView {
            height: 5,
            time_ms: 0,
            age_s,
            stale_after_s: 7200,
            taken: 6,
            key: Hash::ZERO,
            endorsement_key: None,
        };
        let stale = age_s > quote.stale_after_s;
        View {
            node,
            id: croft_protocol::PublicKey([1; 32]),
            farm,
            holds: !stale,
            class: TrustClass::Attested,
            ledger_class: TrustClass::Attested,
            stale,
            quote: Some(quote),
            boot_file: None,
            release: None,
            secure_boot: None,
            endorsement: None,
            checks,
            tip_height: 9,
        }
    }

    #[test]
    fn a_stale_quote_is_an_error_that_names_age_limit_and_remedy() {
        assert!(refusal(&view(7200, Vec::new())).is_none());
        let stale = view(3 * 86_400, Vec::new());
        assert_eq!(
            refusal(&stale).unwrap().to_string(),
            "node 'n1' is attested by a quote that is 3 d old, and stale after 2 h: a running node quotes anew every few \
             hours, so ask its farmer to look at its TPM or to restart it"
        );
        assert!(text(&stale).contains("(3 d ago, which is stale)"), "{}", text(&stale));
    }

    #[test]
    fn a_class_that_does_not_follow_is_an_error_with_every_failed_check() {
        let checked = |check, passed, detail: &str| Checked { check, passed, detail: detail.to_owned() };
        let checks = vec![
            checked(Check::Nonce, Some(true), "of this chain"),
            checked(Check::BootFile, Some(false), "ab is no release\u{1b}[2J"),
            checked(Check::Options, Some(false), "cd is unknown"),
        ];
        let differs = View { class: TrustClass::Sealed, holds: false, ..view(5, checks) };
        let error = refusal(&differs).unwrap().to_string();
        let start =
            "the ledger says that node 'n1' is attested, but what it shows is worth sealed: ab is no release";
        assert!(error.starts_with(start) && error.ends_with("; cd is unknown"), "{error}");
        assert!(!error.contains('\u{1b}'), "a text steers no terminal: {error:?}");
        assert!(text(&differs).contains("the ledger says that it is attested\n"), "{}", text(&differs));
        let less =
            View { class: TrustClass::Attested, ledger_class: TrustClass::Sealed, ..view(5, Vec::new()) };
        let error = refusal(&less).unwrap().to_string();
        assert!(
            error
                .ends_with("every check passed, so the ledger makes less of it: the node may register again")
        );
    }
}
