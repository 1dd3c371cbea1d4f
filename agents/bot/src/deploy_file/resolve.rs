//! From a deploy file to a workload in which nothing is left open.

use std::collections::BTreeMap;
use std::path::PathBuf;

use croft_protocol::image::ImageConfig;
use croft_protocol::workload::{HealthCheck, InvalidWorkload, Mount, PortMapping, Vm, Volume, Workload};
use croft_protocol::{Hash, Name};

use super::{ApprovalFile, DeployFile, Placement, SecretSource, TermsFile, VmFile};

/// A secret becomes an environment variable; Linux allows 128 KiB for one, a contract much less.
const SECRET_BYTES: u64 = 32 * 1024;

/// Where images come from, so that this can be tested without any.
pub trait ImageDefaults {
    /// The manifest's hash and its maker's defaults, for what `image` names.
    fn find(&self, image: &str) -> Result<(Hash, ImageConfig), String>;
}

/// What a deploy file means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub name: Name,
    pub workload: Workload,
    pub terms: TermsFile,
    pub placement: Placement,
    pub approval: Option<ApprovalFile>,
    /// Each image once, in the order of the microVMs.
    pub images: Vec<ResolvedImage>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// As the file names it.
    pub name: String,
    pub manifest: Hash,
}

/// Why a deploy file has no meaning here.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("{path}, [vm.{vm}]: {reason}")]
    Image { path: PathBuf, vm: Name, reason: String },
    #[error("{path}, [vm.{vm}]: secret '{key}' can't be had")]
    Secret { path: PathBuf, vm: Name, key: String, source: SecretError },
    #[error("{path} describes nothing that can run")]
    Invalid { path: PathBuf, source: InvalidWorkload },
}

/// Why there is no secret. Never says what it is.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the environment variable '{variable}' is not set: set it, then deploy again")]
    NoVariable { variable: String },
    #[error("the environment variable '{variable}' is no text")]
    NoText { variable: String },
    #[error("can't read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} has more than {SECRET_BYTES} bytes")]
    TooLarge { path: PathBuf },
    #[error("{path} is no text, or holds a zero byte")]
    NotText { path: PathBuf },
}

impl DeployFile {
    /// Fills in what the images say, reads the secrets and checks the whole. `variable` reads the
    /// environment.
    pub fn resolve(
        &self,
        images: &dyn ImageDefaults,
        variable: &dyn Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Result<Resolved, ResolveError> {
        let mut used: Vec<ResolvedImage> = Vec::new();
        let mut vms = Vec::with_capacity(self.vms.len());
        for (name, file) in &self.vms {
            let (manifest, config) = images.find(&file.image).map_err(|reason| ResolveError::Image {
                path: self.path.clone(),
                vm: name.clone(),
                reason,
            })?;
            if used.iter().all(|image| image.manifest != manifest) {
                used.push(ResolvedImage { name: file.image.clone(), manifest });
            }
            let secrets = self.secrets(name, file, variable)?;
            vms.push(resolve_vm(name, file, manifest, config, secrets));
        }
        let volumes = self
            .volumes
            .iter()
            .map(|(name, v)| Volume { name: name.clone(), kind: v.kind, size_bytes: v.size_bytes })
            .collect();
        let workload = Workload { version: 1, vms, volumes };
        workload.check().map_err(|source| ResolveError::Invalid { path: self.path.clone(), source })?;
        Ok(Resolved {
            name: self.name.clone(),
            workload,
            terms: self.terms.clone(),
            placement: self.placement.clone(),
            approval: self.approval.clone(),
            images: used,
        })
    }

    fn secrets(
        &self,
        vm: &Name,
        file: &VmFile,
        variable: &dyn Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Result<BTreeMap<String, String>, ResolveError> {
        let mut secrets = BTreeMap::new();
        for (key, source) in &file.secrets {
            let value = self.secret(source, variable).map_err(|source| ResolveError::Secret {
                path: self.path.clone(),
                vm: vm.clone(),
                key: key.clone(),
                source,
            })?;
            secrets.insert(key.clone(), value);
        }
        Ok(secrets)
    }

    fn secret(
        &self,
        source: &SecretSource,
        variable: &dyn Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Result<String, SecretError> {
        use std::io::Read as _;
        match source {
            SecretSource::Env(name) => variable(name)
                .ok_or_else(|| SecretError::NoVariable { variable: name.clone() })?
                .into_string()
                .map_err(|_| SecretError::NoText { variable: name.clone() }),
            SecretSource::File(relative) => {
                let path = self.path.parent().unwrap_or(std::path::Path::new("")).join(relative);
                let failed = |source| SecretError::Read { path: path.clone(), source };
                let mut bytes = Vec::new();
                let file = std::fs::File::open(&path).map_err(failed)?;
                file.take(SECRET_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
                if bytes.len() as u64 > SECRET_BYTES {
                    return Err(SecretError::TooLarge { path });
                }
                let text = String::from_utf8(bytes)
                    .ok()
                    .filter(|t| !t.contains('\0'))
                    .ok_or(SecretError::NotText { path })?;
                // Editors end a file with a line feed; nobody means it as part of a password.
                Ok(text.strip_suffix('\n').map_or(text.clone(), str::to_owned))
            }
        }
    }
}

fn resolve_vm(
    name: &Name,
    file: &VmFile,
    image: Hash,
    config: ImageConfig,
    secrets: BTreeMap<String, String>,
) -> Vm {
    let argv = file.command.clone().unwrap_or_else(|| {
        let mut argv = config.entrypoint;
        argv.extend(config.cmd);
        argv
    });
    let mut env = config.env;
    env.extend(file.env.clone());
    // The secret wins over what the image sets under the same name.
    env.retain(|key, _| !secrets.contains_key(key));
    let or_default = |given: &Option<String>, image: String, last: &str| match given {
        Some(text) => text.clone(),
        None if image.is_empty() => last.to_owned(),
        None => image,
    };
    Vm {
        name: name.clone(),
        image,
        argv,
        env,
        secrets,
        user: or_default(&file.user, config.user, "0"),
        working_dir: or_default(&file.working_dir, config.working_dir, "/"),
        stop_signal: or_default(&file.stop_signal, config.stop_signal, "SIGTERM"),
        stop_grace_s: file.stop_grace_s,
        cpu_millis: file.cpu_millis,
        memory_bytes: file.memory_bytes,
        mounts: file
            .mounts
            .iter()
            .map(|m| Mount { volume: m.volume.clone(), path: m.path.clone(), read_only: m.read_only })
            .collect(),
        ports: file
            .ports
            .iter()
            .map(|p| PortMapping { transport: p.transport, published: p.published, guest: p.guest })
            .collect(),
        health: file.health.as_ref().map(|h| HealthCheck {
            probe: h.probe.clone(),
            interval_s: h.interval_s,
            timeout_s: h.timeout_s,
            retries: h.retries,
            start_period_s: h.start_period_s,
        }),
        restart: file.restart,
    }
}
