use std::ffi::OsString;

use croft_protocol::Hash;
use croft_protocol::image::ImageConfig;
use croft_protocol::workload::Probe;

use super::*;

const PATH: &str = "web.toml";

fn parse(text: &str) -> Result<DeployFile, String> {
    DeployFile::parse(Path::new(PATH), text).map_err(|e| e.to_string())
}

/// One image, `nginx`, with an entry point.
struct OneImage;

impl ImageDefaults for OneImage {
    fn find(&self, image: &str) -> Result<(Hash, ImageConfig), String> {
        if image != "nginx" {
            return Err(format!("there is no image '{image}'"));
        }
        let config = ImageConfig {
            entrypoint: vec!["/entry".to_owned()],
            cmd: vec!["-g".to_owned()],
            env: [("PATH", "/bin"), ("TOKEN", "default")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            user: "www".to_owned(),
            stop_signal: "SIGQUIT".to_owned(),
            ..ImageConfig::default()
        };
        Ok((Hash([7; 32]), config))
    }
}

fn resolve(text: &str) -> Result<Resolved, String> {
    let variable = |name: &str| (name == "MY_TOKEN").then(|| OsString::from("s3cret"));
    parse(text)?.resolve(&OneImage, &variable).map_err(|e| crate::exit::Failure::failed(e).message())
}

const MINIMAL: &str = "name = \"web\"\n[vm.web]\nimage = \"nginx\"\ncpu = 1\nmemory = \"128M\"\n";

fn with(extra: &str) -> String {
    format!("{MINIMAL}{extra}\n")
}

#[test]
fn the_documented_example_is_a_deploy_file() {
    let example = FORMAT.split_once("\n\n").unwrap().1;
    // It shows a file that is not here.
    let example = example.replace(", KEY = { file = \"key.txt\" }", "");
    let resolved = resolve(&example).unwrap();
    assert_eq!(resolved.name.as_str(), "web");
    let vm = &resolved.workload.vms[0];
    assert_eq!((vm.cpu_millis, vm.memory_bytes), (500, 256 << 20));
    assert_eq!(vm.argv, ["/bin/app", "-v"]);
    assert_eq!(vm.secrets["TOKEN"], "s3cret");
    assert_eq!(vm.health.as_ref().unwrap().probe, Probe::Http { port: 80, path: "/".to_owned() });
    assert_eq!(resolved.workload.volumes[0].size_bytes, 64 << 20);
    assert_eq!(
        resolved.terms,
        TermsFile { duration_s: 86_400, grace_s: 3_600, max_price: Some(1_000_000), prepaid_s: Some(7200) }
    );
    let approval = resolved.approval.unwrap();
    assert_eq!((approval.threshold, approval.approvers.len()), (2, 2));
    assert!(approval.approvers[0].required && approval.approvers[0].weight == 2);
    assert_eq!(resolved.placement.countries, ["be", "nl"]);
}

#[test]
fn approvers_and_prepaid_time_are_checked_before_anything_is_asked() {
    let approval =
        parse(&with("[approval]\napprovers = [{ bot = \"olga\", weight = 2 }, { bot = \"otto\" }]"));
    assert_eq!(approval.unwrap().approval.unwrap().threshold, 3, "that of all");
    for (text, says) in [
        ("[approval]\napprovers = []", "web.toml, [approval]: 0 approvers; allowed are 1 to 16"),
        (
            "[approval]\napprovers = [{ bot = \"a\" }, { bot = \"a\" }]",
            "approver 'a' is named twice: keep one",
        ),
        (
            "[approval]\napprovers = [{ bot = \"a\", weight = 0 }]",
            "approver 'a' has weight 0: give 1 or more",
        ),
        (
            "[approval]\nthreshold = 2\napprovers = [{ bot = \"a\" }]",
            "threshold 2; allowed are 1 to 1, the sum of the weights",
        ),
        ("[terms]\nprepaid = \"59m\"", "prepaid: 3540 s are too short; at least 60 min"),
        ("[terms]\nprepaid = \"25h\"", "prepaid: 90000 s are too long"),
    ] {
        let error = parse(&with(text)).unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn what_the_file_leaves_open_comes_from_the_image() {
    let resolved = resolve(MINIMAL).unwrap();
    let vm = &resolved.workload.vms[0];
    assert_eq!(vm.argv, ["/entry", "-g"]);
    assert_eq!(vm.env["PATH"], "/bin");
    assert_eq!((vm.user.as_str(), vm.working_dir.as_str()), ("www", "/"));
    assert_eq!((vm.stop_signal.as_str(), vm.stop_grace_s), ("SIGQUIT", 10));
    assert_eq!(resolved.images, [ResolvedImage { name: "nginx".to_owned(), manifest: Hash([7; 32]) }]);
}

#[test]
fn a_secret_hides_the_images_own_value_and_stays_out_of_env() {
    let resolved = resolve(&with("secrets = { TOKEN = { env = \"MY_TOKEN\" } }")).unwrap();
    let vm = &resolved.workload.vms[0];
    assert!(!vm.env.contains_key("TOKEN"));
    assert_eq!(vm.secrets["TOKEN"], "s3cret");
}

#[test]
fn a_secret_file_is_found_beside_the_deploy_file_without_its_last_line_feed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key.txt"), "pass word\n").unwrap();
    let text = with("secrets = { KEY = { file = \"key.txt\" } }");
    let file = DeployFile::parse(&dir.path().join("web.toml"), &text).unwrap();
    let resolved = file.resolve(&OneImage, &|_| None).unwrap();
    assert_eq!(resolved.workload.vms[0].secrets["KEY"], "pass word");
}

#[test]
fn an_unknown_field_is_refused_by_name_and_line_with_what_is_allowed() {
    let error = parse(&with("imagee = \"x\"")).unwrap_err();
    assert!(
        error.starts_with("web.toml, line 6: unknown field 'imagee'; allowed are 'image', 'cpu', 'memory'"),
        "{error}"
    );
    let error = parse(&with("[terms]\nprice = 5")).unwrap_err();
    assert!(
        error.starts_with(
            "web.toml, line 7: unknown field 'price'; allowed are 'duration', 'grace', 'max_price'"
        ),
        "{error}"
    );
    let error = parse(&with("[volumes.data]\nsize = \"1M\"")).unwrap_err();
    assert!(error.contains("unknown field 'volumes'; allowed are 'name', 'vm', 'volume'"), "{error}");
}

#[test]
fn a_missing_or_mistyped_field_is_named_with_its_line() {
    let error = parse("[vm.web]\nimage = \"nginx\"\ncpu = 1\nmemory = \"1G\"\n").unwrap_err();
    assert!(error.contains("missing field 'name'"), "{error}");
    let error = parse("name = \"web\"\n[vm.web]\ncpu = 1\nmemory = \"1G\"\n").unwrap_err();
    assert!(error.starts_with("web.toml, line 2: missing field 'image'"), "{error}");
    let error = parse(&with("env = \"A=b\"")).unwrap_err();
    assert!(error.starts_with("web.toml, line 6: invalid type: string"), "{error}");
    let error = parse("name = \"Web\"\n").unwrap_err();
    assert!(error.starts_with("web.toml, line 1: 'Web' is not a name: use 1 to 32 of a-z"), "{error}");
    let error = parse("name = \"web\"\n[vm.web\n").unwrap_err();
    assert!(error.starts_with("web.toml, line 2: "), "{error}");
}

#[test]
fn impossible_sizes_are_refused_with_the_place_and_an_example() {
    for (text, says) in [
        (
            MINIMAL.replace("128M", "lots"),
            "web.toml, [vm.web]: memory: 'lots' is not a size: write a whole number with K, M, G or T, such as 512M",
        ),
        (
            MINIMAL.replace("cpu = 1", "cpu = \"0\""),
            "web.toml, [vm.web]: cpu: '0' is not a number of CPUs: write 1, 0.5 or 250m",
        ),
        (
            MINIMAL.replace("128M", "1M"),
            "web.toml describes nothing that can run: microVM 'web' asks for 1048576 of bytes of memory; allowed are whole MiB from 64 MiB to 64 TiB",
        ),
        (
            MINIMAL.replace("128M", "99999999T"),
            "web.toml, [vm.web]: memory: '99999999T' is not a size: write a whole number with K, M, G or T, such as 512M",
        ),
        (
            with("[volume.data]\nkind = \"exclusive\"\nsize = \"1K\""),
            "web.toml describes nothing that can run: volume 'data' has 1024 bytes; allowed are 16 MiB to 15 TiB",
        ),
        (
            with("[terms]\nduration = \"100000d\""),
            "web.toml, [terms]: duration: 8640000000 s are too long; at most 3650 d are allowed",
        ),
        (
            with("stop_grace = \"soon\""),
            "web.toml, [vm.web]: stop_grace: 'soon' is not a duration: write a whole number with s, m, h or d, such as 24h",
        ),
    ] {
        assert_eq!(resolve(&text).unwrap_err(), says);
    }
}

#[test]
fn contradictions_are_refused() {
    for (text, says) in [
        (
            with("env = { A = \"1\" }\nsecrets = { A = { env = \"X\" } }"),
            "'A' is set in env and in secrets: keep one",
        ),
        (with("secrets = { A = {} }"), "secret 'A' needs either env = \"VARIABLE\" or file = \"PATH\""),
        (with("health = { interval = \"5s\" }"), "health: give exactly one of tcp"),
        (with("health = { tcp = { port = 1 }, http = { port = 1 } }"), "health: give exactly one of tcp"),
        (with("stop_signal = \"quit\""), "stop_signal: 'quit' is no signal: write its name, such as SIGTERM"),
        (
            with("mounts = [{ volume = \"data\", path = \"/d\" }]"),
            "mounts volume 'data', which is not described",
        ),
        (
            with("ports = [{ published = 80, guest = 1 }, { published = 80, guest = 2 }]"),
            "port 80/tcp is published twice",
        ),
        (with("[placement]\ncountry = [\"BE\"]"), "[placement]: 'BE' is not a country"),
        (with("[placement]\nnode = \"n\""), "node is named, but not its farm"),
    ] {
        let error = resolve(&text).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_missing_image_or_secret_is_named_with_its_microvm() {
    let error = resolve(&MINIMAL.replace("nginx", "apache")).unwrap_err();
    assert_eq!(error, "web.toml, [vm.web]: there is no image 'apache'");
    let error = resolve(&with("secrets = { K = { env = \"NOPE\" } }")).unwrap_err();
    assert_eq!(
        error,
        "web.toml, [vm.web]: secret 'K' can't be had: the environment variable 'NOPE' is not set: set it, then deploy again"
    );
    let error = resolve(&with("secrets = { K = { file = \"no-such-file\" } }")).unwrap_err();
    assert!(error.contains("secret 'K' can't be had: can't read no-such-file: No such file"), "{error}");
}

#[test]
fn a_file_that_is_not_there_says_where_the_format_is() {
    let error = DeployFile::read(Path::new("/nonexistent/croft.toml")).unwrap_err().to_string();
    assert!(error.starts_with("there is no deploy file /nonexistent/croft.toml"), "{error}");
}
