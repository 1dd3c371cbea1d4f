//! What a recipe may say, and what comes out of it.

use std::path::Path;

use super::*;
use crate::deploy_file::{DeployFile, SecretSource};

const SHOP: &str = r#"
[recipe]
name = "shop"
title = "A shop with its database"
description = "Two machines."

[parameter.greeting]
type = "text"
description = "Shown on the first page"
default = "hello"
max_length = 16
[parameter.published]
type = "port"
[parameter.room]
type = "size"
default = "64M"
min = "16M"
max = "1G"
[parameter.level]
type = "choice"
choices = ["quiet", "loud"]
default = "quiet"
[parameter.workers]
type = "integer"
min = 1
max = 8
default = 2
[parameter.password]
type = "secret"
default = "generate"

[vm.web]
image = "nginx" # which one, publishing says
cpu = "0.5"
memory = "256M"
env = { GREETING = "${greeting}!", PRICE = "5$$", WORKERS = "${workers}", LEVEL = "--${level}--" }
secrets = { DB_PASSWORD = "${password}" }
ports = [{ published = "${published}", guest = 80 }]
[vm.db]
image = "redis"
cpu = 1
memory = "128M"
secrets = { DB_PASSWORD = "${password}" }
mounts = [{ volume = "data", path = "/data" }]
[volume.data]
kind = "exclusive"
size = "${room}"
[terms]
duration = "1h"
"#;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn values(pairs: &[(&str, &str)]) -> BTreeMap<Name, String> {
    pairs.iter().map(|(key, value)| (name(key), (*value).to_owned())).collect()
}

fn shop() -> Template {
    Template::parse("eve/shop", SHOP).unwrap()
}

fn refused(text: &str) -> String {
    Template::parse("eve/shop", text).expect_err("this is no recipe").to_string()
}

fn given(pairs: &[(&str, &str)]) -> String {
    shop()
        .render(&name("mine"), &values(pairs), &BTreeMap::new())
        .expect_err("these values are wrong")
        .to_string()
}

#[test]
fn values_fill_their_places_and_a_deploy_file_comes_out() {
    let generated = BTreeMap::from([(name("password"), PathBuf::from("/home/a/secrets/password"))]);
    let given = values(&[("greeting", "a \"b\" ${room}"), ("published", "18080"), ("workers", "8")]);
    assert_eq!(shop().to_generate(&given), [name("password")]);
    let text = shop().render(&name("mine"), &given, &generated).unwrap();
    let file = DeployFile::parse(Path::new("eve/shop"), &text).unwrap();
    assert_eq!(file.name, name("mine"));
    let web = &file.vms[&name("web")];
    // A value stays one value, and its own places are text.
    assert_eq!(web.env["GREETING"], "a \"b\" ${room}!");
    assert_eq!((web.env["PRICE"].as_str(), web.env["LEVEL"].as_str()), ("5$", "--quiet--"));
    // A number is a number for a port, and a word for a program.
    assert_eq!((web.ports[0].published, web.env["WORKERS"].as_str()), (18080, "8"));
    assert_eq!(file.volumes[&name("data")].size_bytes, 64 << 20);
    let secret = SecretSource::File(PathBuf::from("/home/a/secrets/password"));
    assert_eq!(web.secrets["DB_PASSWORD"], secret);
    assert_eq!(file.vms[&name("db")].secrets["DB_PASSWORD"], secret);
}

#[test]
fn a_secret_given_by_its_place_is_read_there_and_nothing_else_is_a_secret() {
    let render = |value| {
        let text = shop().render(
            &name("mine"),
            &values(&[("published", "80"), ("password", value)]),
            &BTreeMap::new(),
        );
        DeployFile::parse(Path::new("eve/shop"), &text.unwrap()).unwrap().vms[&name("web")].secrets["DB_PASSWORD"].clone()
    };
    assert_eq!(render("env:SHOP"), SecretSource::Env("SHOP".to_owned()));
    assert_eq!(render("file:/run/pass"), SecretSource::File(PathBuf::from("/run/pass")));
    let text = given(&[("published", "80"), ("password", "hunter2")]);
    assert_eq!(
        text,
        "eve/shop, parameter 'password': a secret is given as env:VARIABLE, file:PATH or generate, never by itself"
    );
}

#[test]
fn a_recipe_reads_no_file_and_no_variable_of_its_deployer() {
    for stolen in [
        "{ DB_PASSWORD = { file = \"/etc/ssl/private/key.pem\" } }",
        "{ DB_PASSWORD = { env = \"AWS_SECRET\" } }",
        "{ DB_PASSWORD = { env = \"${password}\" } }",
        "{ DB_PASSWORD = \"x\" }",
        "{ DB_PASSWORD = \"${greeting}\" }",
        "{ DB_PASSWORD = 5 }",
    ] {
        let text = SHOP.replacen("{ DB_PASSWORD = \"${password}\" }", stolen, 1);
        let message = refused(&text);
        assert!(message.starts_with("eve/shop, vm.web.secrets.DB_PASSWORD"), "{stolen}: {message}");
        assert!(message.contains("of a parameter of type secret"), "{stolen}: {message}");
    }
    let text = SHOP.replace("default = \"generate\"", "default = \"file:/etc/shadow\"");
    assert_eq!(
        refused(&text),
        "eve/shop, [parameter.password]: the default of a secret is 'generate' or nothing"
    );
    let shown = SHOP.replace("\"${greeting}!\"", "\"${password}\"");
    let message = refused(&shown);
    assert!(message.contains("'password' is a secret: only secrets"), "{message}");
}

#[test]
fn values_that_are_not_allowed_name_the_parameter_and_what_is() {
    let port = ("published", "80");
    for (pairs, message) in [
        (vec![], "eve/shop needs a value for 'published': give it with --set published=..."),
        (
            vec![("colour", "red")],
            "eve/shop has no parameter 'colour'; it has 'greeting', 'level', 'password', 'published', 'room', 'workers'",
        ),
        (vec![("published", "0")], "eve/shop, parameter 'published': '0' is no port: 1 to 65535 are allowed"),
        (
            vec![port, ("greeting", "a very long greeting")],
            "eve/shop, parameter 'greeting': 20 bytes are too long: at most 16 are allowed",
        ),
        (
            vec![port, ("greeting", "a\nb")],
            "eve/shop, parameter 'greeting': a text has one line and no control characters",
        ),
        (vec![port, ("workers", "9")], "eve/shop, parameter 'workers': 9 is too large: at most 8 is allowed"),
        (vec![port, ("workers", "two")], "eve/shop, parameter 'workers': 'two' is no integer"),
        (vec![port, ("level", "\u{1b}[2J")], "eve/shop, parameter 'level': '?[2J' is none of quiet, loud"),
    ] {
        let found = given(&pairs);
        if pairs.iter().any(|(key, _)| *key == "level") {
            assert!(found.ends_with("is none of quiet, loud") && !found.contains('\u{1b}'), "{found}");
        } else {
            assert_eq!(found, message);
        }
    }
    let found = given(&[port, ("room", "2G")]);
    assert!(
        found.starts_with("eve/shop, parameter 'room': the size") && found.contains("is too large: at most"),
        "{found}"
    );
}

#[test]
fn mistakes_of_an_expert_are_named_with_their_place() {
    for (from, to, message) in [
        ("name = \"shop\"", "name = \"Shop!\"", "eve/shop, [recipe]: "),
        (
            "title = \"A shop with its database\"",
            "title = \"\"",
            "eve/shop, [recipe]: title: 1 to 120 bytes are allowed, not 0",
        ),
        ("${greeting}!", "${greating}!", "eve/shop, vm.web.env.GREETING: there is no parameter 'greating'"),
        (
            "${greeting}!",
            "${greeting!",
            "eve/shop, vm.web.env.GREETING: a '${' has no '}' after it; $$ stands for $",
        ),
        (
            "${greeting}!",
            "none",
            "eve/shop, [parameter.greeting]: nothing takes its value: write ${greeting} somewhere, or remove it",
        ),
        (
            "image = \"nginx\"",
            "image = \"${greeting}\"",
            "eve/shop, vm.web.image: an image can't be a parameter: nobody could fetch it beforehand",
        ),
        (
            "type = \"port\"",
            "type = \"port\"\nmin = 5",
            "eve/shop, [parameter.published]: min means nothing for this type: remove it",
        ),
        ("type = \"port\"", "type = \"colour\"", "eve/shop, [parameter.published]: unknown variant 'colour'"),
        (
            "min = \"16M\"",
            "min = \"2G\"",
            "eve/shop, [parameter.room]: min is more than max: nothing is allowed",
        ),
        ("default = \"64M\"", "default = \"1M\"", "eve/shop, [parameter.room]: default: the size"),
        (
            "choices = [\"quiet\", \"loud\"]",
            "choices = []",
            "eve/shop, [parameter.level]: choices: 1 to 64 are allowed, not 0",
        ),
        ("[terms]", "[terms", "eve/shop, line "),
        (
            "[recipe]",
            "name = \"web\"\n[recipe]",
            "eve/shop, name: whoever deploys it chooses the name: remove it",
        ),
        ("[recipe]", "[recipes]", "eve/shop, [recipe]: it is missing: give name and title"),
    ] {
        assert!(SHOP.contains(from), "{from}");
        let found = refused(&SHOP.replacen(from, to, 1));
        assert!(found.starts_with(message), "{to}: {found}");
    }
    let long = format!("{SHOP}\n#{}", "x".repeat(limits::RECIPE_BYTES));
    assert!(refused(&long).ends_with("a recipe has at most 32768"), "{}", refused(&long));
}

#[test]
fn publishing_puts_hashes_for_names_and_leaves_the_rest_alone() {
    let hashes = BTreeMap::from([("nginx".to_owned(), Hash([7; 32])), ("redis".to_owned(), Hash([8; 32]))]);
    let pinned = with_hashes(SHOP, &hashes).unwrap();
    let expected = SHOP
        .replace("image = \"nginx\"", &format!("image = \"{}\"", Hash([7; 32])))
        .replace("image = \"redis\"", &format!("image = \"{}\"", Hash([8; 32])));
    // The comment behind the value is the value's; all other bytes stay.
    assert_eq!(
        pinned.replace(" # which one, publishing says", ""),
        expected.replace(" # which one, publishing says", "")
    );
    let images = Template::parse("eve/shop", &pinned).unwrap().images();
    assert_eq!(images, [Hash([7; 32]).to_string(), Hash([8; 32]).to_string()]);
}
