//! What the machine must have before a cluster can run on it: all that is missing is said at once, and installed where it may be.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt};

use crate::cluster;
use crate::programs::Purpose;
use crate::report::Report;
use crate::run::{self, RunError};

/// The oldest Go that builds the programs.
const OLDEST_GO: (u32, u32) = (1, 26);

/// Asked by Debian's packages before they start a service; 101 says no.
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";
const NO_SERVICES: &str = "#!/bin/sh\n# Of Ortolan's local cluster, while it installs packages.\nexit 101\n";

/// A file that comes with a package, and what it is wanted for.
struct Package {
    purpose: Purpose,
    file: &'static str,
    name: &'static str,
}

const PACKAGES: [Package; 11] = [
    Package { purpose: Purpose::ControlPlane, file: "setsid", name: "util-linux" },
    Package { purpose: Purpose::Node, file: "mount", name: "mount" },
    Package { purpose: Purpose::Node, file: "ip", name: "iproute2" },
    Package { purpose: Purpose::Node, file: "nft", name: "nftables" },
    Package { purpose: Purpose::Node, file: "containerd", name: "containerd" },
    Package { purpose: Purpose::Node, file: "containerd-shim-runc-v2", name: "containerd" },
    Package { purpose: Purpose::Node, file: "ctr", name: "containerd" },
    Package { purpose: Purpose::Node, file: "runc", name: "runc" },
    Package { purpose: Purpose::Node, file: "ptp", name: "containernetworking-plugins" },
    Package { purpose: Purpose::Images, file: "buildah", name: "buildah" },
    Package { purpose: Purpose::Images, file: "debootstrap", name: "debootstrap" },
];

/// Something that the machine lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// Another operating system.
    Linux,
    /// The rights of root, for this.
    Root(&'static str),
    /// A package, by its Debian name.
    Package(&'static str),
    /// Go, or a newer one; with the version found.
    Go(Option<String>),
    /// Something of the kernel.
    Kernel(&'static str),
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = OLDEST_GO;
        match self {
            Self::Linux => write!(
                formatter,
                "Linux: the cluster's parts are processes of a Linux machine (set CONTEXT to use another cluster)"
            ),
            Self::Root(purpose) => write!(formatter, "root: {purpose} (the control plane alone does without)"),
            Self::Package(name) => {
                write!(formatter, "the package {name}: apt-get install --no-install-recommends {name}")
            }
            Self::Go(None) => {
                write!(formatter, "Go {major}.{minor} or newer, from https://go.dev/dl: there is none on the PATH")
            }
            Self::Go(Some(found)) => {
                write!(formatter, "Go {major}.{minor} or newer, from https://go.dev/dl: found {found}")
            }
            Self::Kernel(what) => write!(formatter, "the kernel: {what}"),
        }
    }
}

/// Why the machine cannot run a cluster.
#[derive(Debug, thiserror::Error)]
pub enum RequirementError {
    /// Everything that is missing and was not installed.
    #[error("this machine lacks:{}", .0.iter().map(|missing| format!("\n  - {missing}")).collect::<String>())]
    Missing(Vec<Missing>),
    /// The package manager failed.
    #[error("cannot install {packages}")]
    Install {
        /// What was to be installed.
        packages: String,
        /// What the package manager said.
        #[source]
        source: RunError,
    },
    /// The policy that keeps services from starting.
    #[error("cannot write {SERVICE_POLICY}")]
    Policy(#[source] io::Error),
}

/// Whether this process may do everything. A cluster with a node needs it.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Everything that the machine lacks for `purposes`.
pub fn missing(purposes: &[Purpose]) -> Vec<Missing> {
    if !cfg!(target_os = "linux") {
        return vec![Missing::Linux];
    }
    let mut missing = Vec::new();
    if purposes.contains(&Purpose::Node) && !is_root() {
        missing.push(Missing::Root("a node makes namespaces, mounts and control groups"));
    }
    missing.extend(missing_go());
    missing.extend(missing_packages(purposes).into_iter().map(Missing::Package));
    if purposes.contains(&Purpose::Node) {
        missing.extend(missing_in_the_kernel());
    }
    missing
}

/// Installs what is missing where it may: packages, as root, where there is `apt-get`.
///
/// # Errors
/// [`RequirementError::Missing`] lists what is missing still.
pub fn ensure(purposes: &[Purpose], report: Report) -> Result<(), RequirementError> {
    let missing_now = missing(purposes);
    let package = |missing: &Missing| if let Missing::Package(name) = missing { Some(*name) } else { None };
    let packages: Vec<_> = missing_now.iter().filter_map(package).collect();
    // Whoever has to see to something else hears of all of it first, before minutes of downloads.
    let only_packages = packages.len() == missing_now.len();
    if !packages.is_empty() && only_packages && is_root() && find("apt-get").is_some() {
        let step = report.step(format!("install {}", packages.join(", ")));
        install(&packages)?;
        step.done();
    }
    match missing(purposes) {
        missing if missing.is_empty() => Ok(()),
        missing => Err(RequirementError::Missing(missing)),
    }
}

fn missing_packages(purposes: &[Purpose]) -> Vec<&'static str> {
    let wanted = PACKAGES.iter().filter(|package| purposes.contains(&package.purpose));
    let mut names: Vec<_> = wanted.filter(|package| find(package.file).is_none()).map(|package| package.name).collect();
    names.dedup();
    names
}

/// Looks where root's programs lie too: the PATH of a plain user often lacks them. CNI plugins lie apart.
fn find(file: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].into_iter().chain(cluster::CNI_FOLDERS).map(PathBuf::from);
    env::split_paths(&path).chain(more).map(|folder| folder.join(file)).find(|path| path.is_file())
}

fn missing_go() -> Option<Missing> {
    let Ok(version) = run::output(Command::new("go").args(["env", "GOVERSION"])) else {
        return Some(Missing::Go(None));
    };
    let version = version.trim();
    (go_version(version) < Some(OLDEST_GO)).then(|| Missing::Go(Some(version.to_owned())))
}

/// Major and minor number of a version such as `go1.26.8` or `go1.27rc1`.
fn go_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("go")?.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn missing_in_the_kernel() -> Vec<Missing> {
    let mut missing = Vec::new();
    load_modules();
    if !fs::read_to_string("/proc/filesystems").unwrap_or_default().lines().any(|line| line.ends_with("\toverlay")) {
        missing.push(Missing::Kernel("the file system overlay, on which containers live"));
    }
    if !fs::read_to_string("/proc/self/mounts").unwrap_or_default().contains(" cgroup") {
        missing.push(Missing::Kernel("control groups mounted at /sys/fs/cgroup"));
    }
    if !Path::new("/dev/kmsg").exists() {
        missing.push(Missing::Kernel("/dev/kmsg, which the kubelet reads"));
    }
    if is_root() && find("nft").is_some() && run::output(Command::new("nft").args(["list", "tables"])).is_err() {
        missing.push(Missing::Kernel("nftables (nf_tables), with which Services are made"));
    }
    missing
}

/// Where these are modules, they may not be loaded yet. Where they are built in, or there is no modprobe, nothing is lost.
fn load_modules() {
    if is_root() && find("modprobe").is_some() {
        let _ = run::output(Command::new("modprobe").args(["--all", "--quiet", "overlay", "nf_tables", "veth"]));
    }
}

fn install(packages: &[&str]) -> Result<(), RequirementError> {
    let _policy = NoServices::enact()?;
    let error = |source| RequirementError::Install { packages: packages.join(", "), source };
    if apt_get(&["install"], packages).is_err() {
        // The list of packages may be old, or absent as in a fresh container.
        apt_get(&["update"], &[]).map_err(error)?;
        apt_get(&["install"], packages).map_err(error)?;
    }
    if packages.contains(&"containerd") && Path::new("/run/systemd/system").exists() {
        // Nobody asked for the service: it would start with the machine and hold nothing. Failing to say so harms no cluster.
        let _ = run::output(Command::new("systemctl").args(["disable", "containerd.service"]));
    }
    Ok(())
}

fn apt_get(command: &[&str], packages: &[&str]) -> Result<String, RunError> {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args([
        "--yes",
        "--no-install-recommends",
        "-o",
        "DPkg::Lock::Timeout=300",
    ]);
    run::output(apt.args(command).args(packages))
}

/// While it lives, a package that is installed starts no service: Debian's containerd would, and a cluster runs its own.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn enact() -> Result<Self, RequirementError> {
        // One of ours was left by a run that was killed.
        if Path::new(SERVICE_POLICY).exists()
            && fs::read(SERVICE_POLICY).ok().as_deref() != Some(NO_SERVICES.as_bytes())
        {
            return Ok(Self { ours: false });
        }
        fs::write(SERVICE_POLICY, NO_SERVICES).map_err(RequirementError::Policy)?;
        fs::set_permissions(SERVICE_POLICY, fs::Permissions::from_mode(0o755)).map_err(RequirementError::Policy)?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(SERVICE_POLICY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_are_compared_by_number() {
        assert_eq!(go_version("go1.26.8"), Some((1, 26)));
        assert_eq!(go_version("go1.27rc1"), Some((1, 27)));
        assert!(go_version("go1.9") < Some(OLDEST_GO));
        assert!(go_version("devel") < Some(OLDEST_GO));
    }

    #[test]
    fn everything_missing_is_in_one_message() {
        let error = RequirementError::Missing(vec![Missing::Package("runc"), Missing::Go(None)]).to_string();
        assert_eq!(error.lines().count(), 3, "{error}");
    }
}
