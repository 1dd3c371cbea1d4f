//! The bill of materials: fields of its schema, and what belongs in it.

use serde_json::{Value, json};

use super::*;

fn package(name: &str, registry: bool, license: &str) -> Value {
    let source = registry.then_some("registry+index");
    let kind = if name.ends_with("_derive") { "proc-macro" } else { "lib" };
    json!({ "id": format!("id:{name}"), "name": name, "version": "1.2.3+x", "license": license,
        "description": "what it is", "source": source, "targets": [{ "kind": [kind] }] })
}

fn dependency(name: &str, kind: Option<&str>) -> Value {
    json!({ "pkg": format!("id:{name}"), "dep_kinds": [{ "kind": kind, "target": null }] })
}

fn metadata(with_node: bool) -> String {
    let mut packages = vec![
        package("croft-init", false, "Apache-2.0"),
        package("croft-guest", false, "Apache-2.0"),
        package("rustix", true, "MIT/Apache-2.0"),
        package("bitflags", true, "MIT"),
        package("cc", true, "MIT"),
        package("proptest", true, "MIT"),
        package("serde_derive", true, "MIT"),
    ];
    if with_node {
        packages.push(package("croft-node", false, "Apache-2.0"));
    }
    let nodes = json!([
        { "id": "id:croft-init", "deps": [dependency("rustix", None), dependency("proptest", Some("dev"))] },
        { "id": "id:croft-node", "deps": [dependency("rustix", None), dependency("serde_derive", None)] },
        { "id": "id:croft-guest", "deps": [] },
        { "id": "id:rustix", "deps": [dependency("bitflags", None), dependency("cc", Some("build"))] },
        { "id": "id:bitflags", "deps": [] },
        { "id": "id:cc", "deps": [] },
        { "id": "id:proptest", "deps": [] },
    ]);
    json!({ "packages": packages, "resolve": { "nodes": nodes } }).to_string()
}

const LOCK: &str =
    "version = 4\n[[package]]\nname = \"rustix\"\nversion = \"1.2.3+x\"\nchecksum = \"aabb\"\n";

fn made() -> Value {
    let kernel =
        Component::other("operating-system", "linux", "6.12", None).licensed("GPL-2.0-only").hashed("cc");
    serde_json::to_value(document(&metadata(true), LOCK, "0.1.2026013101", vec![kernel]).unwrap()).unwrap()
}

#[test]
fn the_document_has_what_the_schema_of_cyclonedx_1_6_requires() {
    let document = made();
    assert_eq!(document["bomFormat"], "CycloneDX");
    assert_eq!(document["specVersion"], "1.6");
    assert_eq!(document["version"], 1);
    let serial = document["serialNumber"].as_str().unwrap();
    // ^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$
    let lengths: Vec<usize> = serial.strip_prefix("urn:uuid:").unwrap().split('-').map(str::len).collect();
    assert_eq!(lengths, [8, 4, 4, 4, 12]);
    let types = ["application", "library", "operating-system", "firmware", "file"];
    let components = document["components"].as_array().unwrap();
    for component in components {
        assert!(types.contains(&component["type"].as_str().unwrap()), "{component}");
        assert!(!component["name"].as_str().unwrap().is_empty(), "{component}");
        for hash in component["hashes"].as_array().into_iter().flatten() {
            assert_eq!(hash["alg"], "SHA-256");
        }
    }
    let mut references: Vec<&str> =
        components.iter().map(|component| component["bom-ref"].as_str().unwrap()).collect();
    references.push(document["metadata"]["component"]["bom-ref"].as_str().unwrap());
    references.sort_unstable();
    assert!(references.windows(2).all(|pair| pair[0] != pair[1]), "each bom-ref once: {references:?}");
    for edges in document["dependencies"].as_array().unwrap() {
        let on = edges["dependsOn"].as_array().unwrap().iter().map(|on| on.as_str().unwrap());
        for reference in on.chain([edges["ref"].as_str().unwrap()]) {
            assert!(references.contains(&reference), "{reference} is described nowhere");
        }
    }
}

#[test]
fn what_is_linked_is_listed_and_what_only_builds_or_tests_is_not() {
    let document = made();
    let names: Vec<&str> =
        document["components"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    for name in ["croft-init", "croft-node", "croft-guest", "rustix", "bitflags", "linux"] {
        assert!(names.contains(&name), "{name} is missing: {names:?}");
    }
    for name in ["cc", "proptest", "serde_derive"] {
        assert!(!names.contains(&name), "{name} is not in the image: {names:?}");
    }
}

#[test]
fn a_crate_has_its_licence_hash_and_address() {
    let document = made();
    let rustix = document["components"].as_array().unwrap().iter().find(|c| c["name"] == "rustix").unwrap();
    assert_eq!(rustix["purl"], "pkg:cargo/rustix@1.2.3%2Bx");
    assert_eq!(rustix["licenses"][0]["expression"], "MIT OR Apache-2.0");
    assert_eq!(rustix["hashes"][0]["content"], "aabb");
}

#[test]
fn equal_inputs_give_equal_bytes_and_others_another_serial_number() {
    assert_eq!(made().to_string(), made().to_string());
    let without = document(&metadata(true), LOCK, "0.1.2026013101", Vec::new()).unwrap();
    assert_ne!(made()["serialNumber"].as_str().unwrap(), without.serial_number);
}

#[test]
fn a_program_that_cargo_does_not_know_is_named() {
    let error = document(&metadata(false), LOCK, "0.1.2026013101", Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "croft-node is not in cargo's metadata, though the image has it");
}
