//! Files that people write or get from others, and the images that strangers make.

use std::io::Read;

use croft_bot::deploy_file::{DeployFile, SecretSource};
use croft_bot::fuzzing;
use croft_bot::home::ImageEntry;
use croft_bot::keep_file::KeepFile;
use croft_bot::keyfile::{self, KeyFile};
use croft_bot::recipe::Template;
use croft_protocol::limits;
use flate2::read::MultiGzDecoder;

use crate::check::{bounded, bounded_message, canonical, json_again, text};
use crate::scene::{encoded, scene, written};
use crate::targets::texts::place;
use crate::{Seed, Target};

pub const TARGETS: &[Target] = &[
    Target {
        name: "deploy-file",
        decodes: "a deployment as people write it (croft.toml)",
        sent_by: "people, experts",
        files: &["agents/bot/src/deploy_file.rs"],
        seeds: deploy_files,
        rounds: 800,
        run: deploy_file,
    },
    Target {
        name: "recipe",
        decodes: "a deployment with parameters",
        sent_by: "experts, through the ledger",
        files: &["agents/bot/src/recipe.rs", "agents/bot/src/recipe/parameter.rs"],
        seeds: || vec![written("shop.toml", RECIPE)],
        rounds: 800,
        run: recipe,
    },
    Target {
        name: "keep-file",
        decodes: "a standing order as people write it (keep.toml)",
        sent_by: "people",
        files: &["agents/bot/src/keep_file.rs"],
        seeds: keep_files,
        rounds: 800,
        run: keep_file,
    },
    Target {
        name: "validator-change-file",
        decodes: "a change of the validators on its way to be signed",
        sent_by: "other validators",
        files: &["agents/bot/src/commands/validators.rs"],
        seeds: || vec![written("change.json", &change_file())],
        rounds: 800,
        run: change,
    },
    Target {
        name: "release-file",
        decodes: "a release, or a change of the release keys, on its way to be signed",
        sent_by: "owners of release keys",
        files: &["agents/bot/src/commands/release.rs"],
        seeds: || vec![written("keys.json", KEYS_FILE)],
        rounds: 800,
        run: release_file,
    },
    Target {
        name: "key-file",
        decodes: "a bot's key, open or behind a passphrase, and the words of a recovery phrase",
        sent_by: "a disk, another machine",
        files: &["agents/bot/src/keyfile.rs"],
        seeds: key_files,
        rounds: 800,
        run: key_file,
    },
    Target {
        name: "image-entry",
        decodes: "what the name of an image stands for",
        sent_by: "a disk",
        files: &["agents/bot/src/home.rs"],
        seeds: || vec![written("image.json", IMAGE_ENTRY)],
        rounds: 800,
        run: image_entry,
    },
    Target {
        name: "layer-tar",
        decodes: "the archive of an image's layer",
        sent_by: "who made the image",
        files: &["agents/bot/src/image/layer_tar.rs", "agents/bot/src/image/tree.rs"],
        seeds: layers,
        rounds: 1_500,
        run: layer,
    },
    Target {
        name: "layer-blob",
        decodes: "a layer as it is stored: gzip or zstd",
        sent_by: "who made the image",
        files: &["agents/bot/src/image/layers.rs"],
        seeds: packed_layers,
        rounds: 400,
        run: packed_layer,
    },
    Target {
        name: "oci-documents",
        decodes: "index, manifest and configuration of an OCI image",
        sent_by: "who made the image",
        files: &["agents/bot/src/image/oci.rs"],
        seeds: documents,
        rounds: 800,
        run: oci,
    },
];

const IMAGE_ENTRY: &str = r#"{
  "name": "nginx",
  "manifest": "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
  "source": "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
  "layout": "images/nginx",
  "tag": "latest",
  "size_bytes": 8192
}"#;

const DEPLOY_FILE: &str = r#"name = "web"

[vm.web]
image = "nginx"
cpu = "0.5"
memory = "256M"
command = ["/bin/app", "-v"]
env = { LANG = "C" }
secrets = { TOKEN = { env = "MY_TOKEN" }, KEY = { file = "key.txt" } }
user = "1000:1000"
working_dir = "/srv"
stop_signal = "SIGQUIT"
stop_grace = "10s"
restart = "always"
mounts = [{ volume = "data", path = "/data", read_only = false }]
ports = [{ published = 18080, guest = 80, transport = "tcp" }]
health = { http = { port = 80, path = "/" }, interval = "5s", timeout = "2s", retries = 3, start_period = "30s" }

[volume.data]
kind = "exclusive"
size = "64M"

[terms]
duration = "24h"
grace = "1h"
max_price = 1000000

[placement]
country = ["be", "nl"]
farm = "attic"
node = "node-1"
"#;

fn keep_file(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    match bounded("keep file", bytes.len(), || KeepFile::parse(place(), text)) {
        Ok(file) => {
            assert!(file.wanted.budget >= file.wanted.max_price && file.wanted.silent_ms >= 60_000);
            assert!(file.wanted.name.as_str().len() <= 20);
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() <= 4 * 1024 + 8 * bytes.len(), "{message}");
        }
    }
}

fn keep_files() -> Vec<Seed> {
    vec![written("whole.toml", croft_bot::keep_file::FORMAT.split_once("\n\n").map_or("", |(_, text)| text))]
}

fn deploy_file(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    match bounded("deploy file", bytes.len(), || DeployFile::parse(place(), text)) {
        Ok(file) => {
            assert!(file.terms.duration_s > 0);
            assert!(file.vms.values().all(|vm| vm.memory_bytes > 0 && vm.cpu_millis > 0));
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() <= 4 * 1024 + 8 * bytes.len(), "{message}");
        }
    }
}

/// With a secret, which the recipe must not choose the place of.
const RECIPE: &str = include_str!("../../../it/fixtures/shop/recipe.toml");

/// Whatever a stranger wrote, it never names a file or a variable of whoever deploys it.
fn recipe(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let parsed = bounded("recipe", bytes.len(), || Template::parse("recipe eve/shop", text));
    let template = match parsed {
        Ok(template) => template,
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() <= 4 * 1024 + 8 * bytes.len(), "{message}");
            return;
        }
    };
    // All secrets are asked for by the sample, and one that is asked for has this name.
    let Ok(sample) = template.sample() else { return };
    let Ok(file) = DeployFile::parse(place(), &sample) else { return };
    for source in file.vms.values().flat_map(|vm| vm.secrets.values()) {
        assert!(matches!(source, SecretSource::Env(name) if name == "generate"), "{source:?}");
    }
}

const KEYS_FILE: &str = include_str!("../../corpus/release-file/keys.json");

fn release_file(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let is_one = bounded("file of a release", bytes.len(), || fuzzing::release_file(text));
    assert!(is_one || text != KEYS_FILE);
}

fn key_file(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    match bounded("key file", bytes.len(), || KeyFile::parse(text)) {
        Ok(KeyFile::Open(key)) => {
            let again = KeyFile::parse(&keyfile::open_text(&key)).map(|file| file.id());
            assert_eq!(again.ok(), Some(key.public()));
        }
        Ok(KeyFile::Locked(locked)) => {
            let again = locked.to_text().ok().and_then(|text| KeyFile::parse(&text).ok());
            assert!(matches!(again, Some(KeyFile::Locked(again)) if again == locked));
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() <= 4 * 1024 + 8 * bytes.len(), "{message}");
        }
    }
    if let Ok(key) = bounded("recovery phrase", bytes.len(), || keyfile::from_words(text)) {
        let words = keyfile::to_words(&key).map(|words| words.to_string());
        let clean = text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words.ok(), Some(clean), "a key has one phrase");
    }
}

fn key_files() -> Vec<Seed> {
    let locked = format!(
        "format = \"croft-key-1\"\nname = \"alice\"\nid = \"{}\"\nsalt = \"{}\"\nnonce = \"{}\"\nsealed = \"{}\"\n\
         [costs]\nmemory_kib = 65536\npasses = 3\nlanes = 4\n",
        "a1".repeat(32),
        "b2".repeat(16),
        "c3".repeat(24),
        "d4".repeat(48)
    );
    let words = "abandon ".repeat(23) + "art";
    vec![written("locked.toml", &locked), written("open", &"5a".repeat(32)), written("words", &words)]
}

fn change(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok((chain, signed)) = bounded("file of a change", bytes.len(), || fuzzing::validator_change(text))
    else {
        return;
    };
    let sorted = signed.signatures.windows(2).all(|pair| pair[0].0 < pair[1].0);
    assert!(sorted, "signatures stand in no order or twice");
    if !signed.signatures.is_empty() && signed.verify_signatures(&chain).is_ok() {
        assert_eq!(signed.change, scene().change.change, "an altered change has good signatures");
    }
    drop(canonical::<croft_protocol::SignedValidatorChange>(
        "validator change",
        limits::COMMAND_BYTES,
        &croft_protocol::encode(&signed),
    ));
}

fn image_entry(bytes: &[u8]) {
    if let Ok(entry) = bounded("image entry", bytes.len(), || serde_json::from_slice::<ImageEntry>(bytes)) {
        json_again("image entry", &entry);
    }
}

/// What a walk may take: buffers of decompressors, and the list of what was found.
const WALK_BYTES: u64 = 4 << 20;

/// Nothing is made outside of the tree, and an entry's attributes are bounded, whatever the archive unpacks to.
fn walk(what: &str, stored: usize, archive: impl Read) {
    let mut walked = Ok(Vec::new());
    let info = allocation_counter::measure(|| walked = fuzzing::walk_layer(archive));
    let allowed = WALK_BYTES + 64 * stored as u64;
    assert!(info.bytes_max <= allowed, "{what} of {stored} bytes takes {} of memory", info.bytes_max);
    match walked {
        Ok(entries) => {
            for entry in entries {
                assert!(entry.xattr_bytes <= 1 << 20, "{} bytes of attributes", entry.xattr_bytes);
                let path = entry.path.unwrap_or_default();
                assert!(!path.split('/').any(|part| part == ".."), "{path}");
            }
        }
        Err(error) => bounded_message(what, &error),
    }
}

fn layer(bytes: &[u8]) {
    walk("layer", bytes.len(), bytes);
}

/// Unpacked, at most this much is walked: the limit of a layer is far beyond what a test can do.
const UNPACKED_BYTES: u64 = 8 << 20;

fn packed_layer(bytes: &[u8]) {
    walk("gzip layer", bytes.len(), MultiGzDecoder::new(bytes).take(UNPACKED_BYTES));
    if let Ok(decoder) = zstd::Decoder::with_buffer(bytes) {
        walk("zstd layer", bytes.len(), decoder.take(UNPACKED_BYTES));
    }
}

fn oci(bytes: &[u8]) {
    let _ = bounded("OCI document", bytes.len(), || fuzzing::image_documents(bytes));
    if let Ok(config) = bounded("image configuration", bytes.len(), || fuzzing::image_defaults(bytes)) {
        let encoded = croft_protocol::encode(&config);
        drop(canonical::<croft_protocol::image::ImageConfig>("image defaults", limits::BLOB_BYTES, &encoded));
    }
}

fn deploy_files() -> Vec<Seed> {
    let small = "name = \"web\"\n[vm.web]\nimage = \"nginx\"\ncpu = \"1\"\nmemory = \"64M\"\n";
    vec![written("whole.toml", DEPLOY_FILE), written("small.toml", small)]
}

fn change_file() -> String {
    let scene = scene();
    let signatures: Vec<_> = scene
        .change
        .signatures
        .iter()
        .map(|(key, signature)| {
            serde_json::json!({ "validator": key.to_string(), "signature": hex::encode(signature.0) })
        })
        .collect();
    let file = serde_json::json!({
        "grid": "test",
        "chain": scene.scenario.ledger.chain().to_string(),
        "change": scene.change.change,
        "signatures": signatures,
    });
    format!("{file:#}")
}

/// An archive with one entry of each kind, an extended header and a long name among them.
fn archive() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut add = |path: &str, kind: u8, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    };
    add("etc/", b'5', "", b"");
    add("pax", b'x', "", b"30 SCHILY.xattr.user.a=bcdefgh\n16 mtime=160000\n");
    add("etc/passwd", b'0', "", b"root:x:0:0::/:/bin/sh\n");
    add("etc/link", b'2', "../passwd", b"");
    add("etc/hard", b'1', "etc/passwd", b"");
    add("long", b'L', "", b"a/very/long/name\0");
    add("short", b'0', "", b"content");
    add("etc/.wh.gone", b'0', "", b"");
    add("dev/null", b'3', "", b"");
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn layers() -> Vec<Seed> {
    vec![("layer.tar".to_owned(), archive())]
}

fn packed_layers() -> Vec<Seed> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    std::io::Write::write_all(&mut gzip, &archive()).expect("memory can be written");
    let gzip = gzip.finish().expect("memory can be written");
    let zstd = zstd::bulk::compress(&archive(), 3).expect("it can be packed");
    vec![("layer.tar.gz".to_owned(), gzip), ("layer.tar.zst".to_owned(), zstd)]
}

fn documents() -> Vec<Seed> {
    let digest = format!("sha256:{}", "0".repeat(64));
    let (index, manifest) =
        ("application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json");
    let descriptor = |kind: &str| serde_json::json!({ "mediaType": kind, "digest": digest, "size": 7 });
    let platform = serde_json::json!({ "architecture": "amd64", "os": "linux" });
    let mut image = descriptor(manifest);
    image["platform"] = platform;
    image["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": index, "manifests": [image] });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": manifest,
        "config": descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip")],
    });
    let config = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "User": "www", "ExposedPorts": { "80/tcp": {} }, "Env": ["A=b", "C"], "Entrypoint": ["/bin/web"],
            "Cmd": ["--help"], "Volumes": { "/data": {} }, "WorkingDir": "/srv", "StopSignal": "SIGQUIT",
        },
        "rootfs": { "type": "layers", "diff_ids": [digest] },
    });
    vec![
        written("index.json", &index.to_string()),
        written("manifest.json", &manifest.to_string()),
        written("config.json", &config.to_string()),
        encoded("none", &()),
    ]
}
