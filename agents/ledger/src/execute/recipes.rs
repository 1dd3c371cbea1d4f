//! Recipes: who wrote what, and what its author took back.
//!
//! The ledger keeps texts and never reads them: a recipe that means nothing harms only who publishes it. It must never
//! let anybody but its author change one.

use croft_protocol::record::RecipeBody;
use croft_protocol::{Body, Name, PublicKey, RecordId, Rejection, limits};

use super::{bounds, check_text, known_bot, malformed};
use crate::state::StateReadExt;
use crate::work::{Step, Work};

pub(super) fn publish(work: &mut Work<'_>, author: PublicKey, name: &Name, title: &str, text: &str) -> Step {
    known_bot(work, &author)?;
    if title.is_empty() || title.len() > limits::RECIPE_TITLE_BYTES {
        let allowed = format_args!("1 to {}", limits::RECIPE_TITLE_BYTES);
        return Err(bounds("the length of the recipe's title in bytes", title.len(), allowed));
    }
    if title.chars().any(char::is_control) {
        return Err(malformed("the recipe's title has more than one line, or control characters"));
    }
    if text.is_empty() || text.len() > limits::RECIPE_BYTES {
        let allowed = format_args!("1 to {}", limits::RECIPE_BYTES);
        return Err(bounds("the length of the recipe's text in bytes", text.len(), allowed));
    }
    let body = RecipeBody {
        author,
        name: name.clone(),
        title: title.to_owned(),
        text: text.to_owned(),
        withdrawn: None,
    };
    if work.recipe(&author, name)?.as_ref() == Some(&body) {
        return Err(malformed(format!("recipe '{name}' says this already: its newest version is the same")));
    }
    work.append(RecordId::recipe(&author, name), Body::Recipe(body), author)
}

pub(super) fn withdraw(work: &mut Work<'_>, author: PublicKey, name: &Name, reason: &str) -> Step {
    check_text("the reason", reason)?;
    if reason.is_empty() {
        return Err(malformed(
            "whoever deployed the recipe wants to know why it is withdrawn: give a reason",
        ));
    }
    let Some(mut body) = work.recipe(&author, name)? else {
        return Err(Rejection::UnknownRecipe { author, name: name.clone() }.into());
    };
    if body.withdrawn.is_some() {
        return Err(malformed(format!("recipe '{name}' is withdrawn already")));
    }
    body.withdrawn = Some(reason.to_owned());
    work.append(RecordId::recipe(&author, name), Body::Recipe(body), author)
}

#[cfg(test)]
mod tests {
    use croft_protocol::{Command, SecretKey};

    use super::*;
    use crate::memory::{Scenario, key, name};

    fn refused(scenario: &mut Scenario, key: &SecretKey, command: Command) -> String {
        scenario.ledger.submit(key, command).expect_err("the command must be refused").to_string()
    }

    fn publishing(title: &str, text: &str) -> Command {
        Command::PublishRecipe { name: name("web"), title: title.to_owned(), text: text.to_owned() }
    }

    fn withdrawing(reason: &str) -> Command {
        Command::WithdrawRecipe { name: name("web"), reason: reason.to_owned() }
    }

    #[test]
    fn a_recipe_has_versions_and_one_author() {
        let mut scenario = Scenario::new();
        let (expert, other) = (scenario.user.clone(), scenario.other.clone());
        scenario.ledger.submit(&expert, publishing("A web server", "one")).unwrap();
        scenario.ledger.submit(&expert, publishing("A web server", "two")).unwrap();
        // The same name of another author is another recipe.
        scenario.ledger.submit(&other, publishing("Mine", "three")).unwrap();
        let recipe = |scenario: &Scenario, key: &SecretKey| {
            scenario.ledger.recipe(&key.public(), &name("web")).unwrap().unwrap()
        };
        assert_eq!(recipe(&scenario, &expert).text, "two");
        assert_eq!(recipe(&scenario, &other).text, "three");
        let text = refused(&mut scenario, &expert, publishing("A web server", "two"));
        assert_eq!(
            text,
            "the command is malformed: recipe 'web' says this already: its newest version is the same"
        );
    }

    #[test]
    fn what_is_withdrawn_says_why_and_can_be_published_again() {
        let mut scenario = Scenario::new();
        let (expert, other) = (scenario.user.clone(), scenario.other.clone());
        let text = refused(&mut scenario, &expert, withdrawing("it leaks"));
        assert_eq!(text, format!("bot {} has no recipe 'web'", expert.public()));
        scenario.ledger.submit(&expert, publishing("A web server", "one")).unwrap();
        let text = refused(&mut scenario, &other, withdrawing("envy"));
        assert_eq!(text, format!("bot {} has no recipe 'web'", other.public()));
        let text = refused(&mut scenario, &expert, withdrawing(""));
        assert!(text.ends_with("give a reason"), "{text}");
        scenario.ledger.submit(&expert, withdrawing("it leaks")).unwrap();
        let recipe = scenario.ledger.recipe(&expert.public(), &name("web")).unwrap().unwrap();
        assert_eq!((recipe.withdrawn.as_deref(), recipe.text.as_str()), (Some("it leaks"), "one"));
        let text = refused(&mut scenario, &expert, withdrawing("again"));
        assert_eq!(text, "the command is malformed: recipe 'web' is withdrawn already");
        scenario.ledger.submit(&expert, publishing("A web server", "one")).unwrap();
        assert!(scenario.ledger.recipe(&expert.public(), &name("web")).unwrap().unwrap().withdrawn.is_none());
    }

    #[test]
    fn what_is_too_long_or_no_line_is_refused_and_so_is_a_stranger() {
        let mut scenario = Scenario::new();
        let expert = scenario.user.clone();
        let long = "x".repeat(limits::RECIPE_TITLE_BYTES + 1);
        for (title, text, message) in [
            (
                "",
                "text",
                "the length of the recipe's title in bytes is out of bounds: 0, allowed are 1 to 120",
            ),
            (
                &long,
                "text",
                "the length of the recipe's title in bytes is out of bounds: 121, allowed are 1 to 120",
            ),
            (
                "a\nb",
                "text",
                "the command is malformed: the recipe's title has more than one line, or control characters",
            ),
            ("a", "", "the length of the recipe's text in bytes is out of bounds: 0, allowed are 1 to 32768"),
        ] {
            assert_eq!(refused(&mut scenario, &expert, publishing(title, text)), message);
        }
        let text = "x".repeat(limits::RECIPE_BYTES + 1);
        let refusal = refused(&mut scenario, &expert, publishing("a", &text));
        assert!(refusal.contains("32769"), "{refusal}");
        let refusal = refused(&mut scenario, &key(50), publishing("a", "b"));
        assert!(refusal.contains("is no bot on this grid"), "{refusal}");
    }
}
