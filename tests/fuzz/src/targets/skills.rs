//! Skills as they are passed around. What is inside of one is the engine's to check; here is what stands before it.

use croft_protocol::{Name, SecretKey};
use croft_skills::{Hook, SignedSkill, limits};

use crate::check::{bounded, bounded_message};
use crate::{Seed, Target};

pub const TARGETS: &[Target] = &[Target {
    name: "skill-file",
    decodes: "a skill: manifest, signature, component",
    sent_by: "whoever writes skills",
    files: &["agents/skills/src/file.rs"],
    seeds,
    rounds: 400,
    run,
}];

fn seeds() -> Vec<Seed> {
    let seed = |file: &str, hooks: &[Hook], component: &[u8]| {
        let (key, name) = (SecretKey::from_seed(&[5; 32]), Name::new("night").expect("it is a name"));
        let skill = SignedSkill::sign(&key, name, 3, hooks.to_vec(), component.to_vec());
        (file.to_owned(), skill.expect("it is within bounds").encode())
    };
    // The smallest component there is: its header.
    let component = b"\0asm\x0d\0\x01\0";
    vec![seed("one-hook", &[Hook::Pricing], component), seed("all-hooks", &Hook::ALL, b"not looked into")]
}

/// What is read is bounded, signed, and written again as the same bytes.
fn run(bytes: &[u8]) {
    match bounded("skill file", bytes.len(), || SignedSkill::decode(bytes)) {
        Ok(skill) => {
            assert_eq!(skill.encode(), bytes);
            assert!(bytes.len() <= limits::FILE_BYTES && skill.manifest().version > 0);
            assert!(!skill.manifest().hooks.is_empty());
            assert_eq!(skill.replaces(&skill), Ok(false));
        }
        Err(error) => bounded_message("a skill file", &error.to_string()),
    }
}
