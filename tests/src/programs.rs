//! The programs that a cluster runs, built from their Go modules and cached by content.
//!
//! Every module lies in `programs/` with its `go.mod` and `go.sum`, so a build is the same everywhere. What comes out is kept outside
//! `target/` under a name made of all that went in; a second build of the same finds it there. Two processes may ask at once: one
//! builds, the other waits.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::report::Report;
use crate::run::{self, RunError};

/// What programs are wanted for. A build makes those of the purposes asked for and no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The API and its controllers.
    ControlPlane,
    /// A node that runs pods.
    Node,
    /// Nodes and pods that are only played.
    Kwok,
    /// Installing charts.
    Helm,
    /// Trying the cluster out from within its pods.
    Probe,
    /// Trying rules, queries and what is exported out.
    Rules,
    /// Taking the traces of a server.
    Traces,
    /// The kinds of the Prometheus Operator that ours knows, which a cluster may have or lack.
    PrometheusOperator,
    /// The Prometheus Operator itself, and what it runs.
    Prometheus,
    /// Showing numbers of Prometheus to the autoscaler of Kubernetes.
    PrometheusAdapter,
    /// KEDA, its kinds and its permissions.
    Keda,
    /// Building container images. Needs packages of the system, and no program from here.
    Images,
}

/// Versions that belong together.
#[derive(Debug)]
pub struct Profile {
    /// How a person chooses it.
    pub name: &'static str,
    modules: &'static [Module],
}

/// A Go module in `programs/` and the programs that are built from it.
#[derive(Debug)]
struct Module {
    folder: &'static str,
    /// What `go.mod` requires, repeated here so that the versions of a profile can be read in one place; a test compares them.
    requires: &'static str,
    version: &'static str,
    /// What Go leaves out or takes in, separated by commas.
    build_tags: &'static str,
    /// Variables that tell a program its own version.
    version_variables: &'static [(&'static str, &'static str)],
    programs: &'static [Program],
    /// Files of the required module that are kept beside the programs.
    files: &'static [ModuleFile],
}

/// A file of a Go module.
#[derive(Debug)]
struct ModuleFile {
    name: &'static str,
    path: &'static str,
    purpose: Purpose,
}

#[derive(Debug)]
struct Program {
    name: &'static str,
    package: &'static str,
    purpose: Purpose,
}

/// Stands for what a module requires that has no other.
const OUR_OWN: &str = "of our own";

/// Every profile. A new one is a row here and its folders in `programs/`, which, but for Kubernetes' own, require the same versions
/// of the libraries that they have in common: each is compiled once.
pub const PROFILES: &[Profile] = &[Profile {
    name: "1.34",
    modules: &[
        Module {
            folder: "kubernetes-1.34",
            requires: "k8s.io/kubernetes",
            version: "v1.34.4",
            build_tags: "",
            version_variables: &[
                ("k8s.io/component-base/version.gitVersion", "v1.34.4"),
                ("k8s.io/component-base/version.gitMajor", "1"),
                ("k8s.io/component-base/version.gitMinor", "34"),
            ],
            programs: &[
                Program::of("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", Purpose::ControlPlane),
                Program::of(
                    "kube-controller-manager",
                    "k8s.io/kubernetes/cmd/kube-controller-manager",
                    Purpose::ControlPlane,
                ),
                Program::of("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", Purpose::ControlPlane),
                Program::of("kubectl", "k8s.io/kubernetes/cmd/kubectl", Purpose::ControlPlane),
                Program::of("kubelet", "k8s.io/kubernetes/cmd/kubelet", Purpose::Node),
                Program::of("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", Purpose::Node),
            ],
            files: &[],
        },
        Module {
            folder: "etcd-3.6",
            requires: "go.etcd.io/etcd/server/v3",
            version: "v3.6.16",
            build_tags: "",
            version_variables: &[],
            programs: &[Program::of("etcd", ".", Purpose::ControlPlane)],
            files: &[],
        },
        Module {
            folder: "coredns-1.15",
            requires: "github.com/coredns/coredns",
            version: "v1.15.0",
            build_tags: "",
            version_variables: &[],
            programs: &[Program::of("coredns", ".", Purpose::Node)],
            files: &[],
        },
        Module {
            folder: "kwok-0.8",
            requires: "sigs.k8s.io/kwok",
            version: "v0.8.0",
            build_tags: "",
            version_variables: &[("sigs.k8s.io/kwok/pkg/consts.Version", "v0.8.0")],
            programs: &[
                Program::of("kwok", "sigs.k8s.io/kwok/cmd/kwok", Purpose::Kwok),
                Program::of("kwok-stages", ".", Purpose::Kwok),
            ],
            files: &[],
        },
        Module {
            folder: "helm-3.22",
            requires: "helm.sh/helm/v3",
            version: "v3.22.0",
            build_tags: "",
            version_variables: &[("helm.sh/helm/v3/internal/version.version", "v3.22.0")],
            programs: &[Program::of("helm", "helm.sh/helm/v3/cmd/helm", Purpose::Helm)],
            files: &[],
        },
        Module {
            folder: "prometheus-operator-0.93",
            requires: "github.com/prometheus-operator/prometheus-operator",
            version: "v0.93.0",
            build_tags: "",
            version_variables: &[("github.com/prometheus/common/version.Version", "0.93.0")],
            programs: &[
                Program::of(
                    "prometheus-operator",
                    "github.com/prometheus-operator/prometheus-operator/cmd/operator",
                    Purpose::Prometheus,
                ),
                Program::of(
                    "prometheus-config-reloader",
                    "github.com/prometheus-operator/prometheus-operator/cmd/prometheus-config-reloader",
                    Purpose::Prometheus,
                ),
            ],
            files: &[
                ModuleFile {
                    name: "servicemonitors.yaml",
                    path: "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
                    purpose: Purpose::PrometheusOperator,
                },
                ModuleFile {
                    name: "prometheusrules.yaml",
                    path: "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
                    purpose: Purpose::PrometheusOperator,
                },
                // All definitions, with roles that suffice.
                ModuleFile { name: "bundle.yaml", path: "bundle.yaml", purpose: Purpose::Prometheus },
            ],
        },
        Module {
            folder: "prometheus-3.15",
            requires: "github.com/prometheus/prometheus",
            version: "v0.315.0",
            // Without the clients of every cloud, which promtool needs to find servers: it is asked for rules alone.
            build_tags: "remove_all_sd",
            version_variables: &[("github.com/prometheus/common/version.Version", "3.15.0")],
            programs: &[Program::of("promtool", "github.com/prometheus/prometheus/cmd/promtool", Purpose::Rules)],
            files: &[],
        },
        Module {
            folder: "prometheus-3.15",
            requires: "github.com/prometheus/prometheus",
            version: "v0.315.0",
            // It finds servers by Kubernetes, and nowhere else.
            build_tags: "remove_all_sd,enable_kubernetes_sd",
            version_variables: &[("github.com/prometheus/common/version.Version", "3.15.0")],
            programs: &[Program::of(
                "prometheus",
                "github.com/prometheus/prometheus/cmd/prometheus",
                Purpose::Prometheus,
            )],
            files: &[],
        },
        Module {
            folder: "prometheus-adapter-0.12",
            requires: "sigs.k8s.io/prometheus-adapter",
            version: "v0.12.0",
            build_tags: "",
            version_variables: &[],
            programs: &[Program::of(
                "prometheus-adapter",
                "sigs.k8s.io/prometheus-adapter/cmd/adapter",
                Purpose::PrometheusAdapter,
            )],
            files: &[],
        },
        Module {
            folder: "keda-2.21",
            requires: "github.com/kedacore/keda/v2",
            version: "v2.21.0",
            build_tags: "",
            version_variables: &[("github.com/kedacore/keda/v2/version.Version", "2.21.0")],
            programs: &[
                Program::of("keda-operator", "github.com/kedacore/keda/v2/cmd/operator", Purpose::Keda),
                Program::of("keda-metrics-apiserver", "github.com/kedacore/keda/v2/cmd/adapter", Purpose::Keda),
            ],
            files: KEDA_FILES,
        },
        Module {
            folder: "otelcol-0.96",
            requires: "go.opentelemetry.io/collector/otelcol",
            // Later versions need a module that no registry of modules has.
            version: "v0.96.0",
            build_tags: "",
            version_variables: &[],
            programs: &[Program::of("otelcol", ".", Purpose::Traces)],
            files: &[],
        },
        Module {
            folder: "pause",
            requires: OUR_OWN,
            version: "1",
            build_tags: "",
            version_variables: &[],
            programs: &[Program::of("pause", ".", Purpose::Node)],
            files: &[],
        },
        Module {
            folder: "probe",
            requires: OUR_OWN,
            version: "1",
            build_tags: "",
            version_variables: &[],
            programs: &[Program::of("probe", ".", Purpose::Probe)],
            files: &[],
        },
    ],
}];

/// KEDA's kinds, all of which its operator wants to be there, and what it may do.
const KEDA_FILES: &[ModuleFile] = &[
    ModuleFile::of("keda-scaledobjects.yaml", "config/crd/bases/keda.sh_scaledobjects.yaml", Purpose::Keda),
    ModuleFile::of("keda-scaledjobs.yaml", "config/crd/bases/keda.sh_scaledjobs.yaml", Purpose::Keda),
    ModuleFile::of("keda-authentications.yaml", "config/crd/bases/keda.sh_triggerauthentications.yaml", Purpose::Keda),
    ModuleFile::of(
        "keda-cluster-authentications.yaml",
        "config/crd/bases/keda.sh_clustertriggerauthentications.yaml",
        Purpose::Keda,
    ),
    ModuleFile::of(
        "keda-event-sources.yaml",
        "config/crd/bases/eventing.keda.sh_cloudeventsources.yaml",
        Purpose::Keda,
    ),
    ModuleFile::of(
        "keda-cluster-event-sources.yaml",
        "config/crd/bases/eventing.keda.sh_clustercloudeventsources.yaml",
        Purpose::Keda,
    ),
    ModuleFile::of("keda-account.yaml", "config/service_account/service_account.yaml", Purpose::Keda),
    ModuleFile::of("keda-role.yaml", "config/rbac/role.yaml", Purpose::Keda),
    ModuleFile::of("keda-role-binding.yaml", "config/rbac/role_binding.yaml", Purpose::Keda),
    ModuleFile::of("keda-metrics-role.yaml", "config/metrics-server/role.yaml", Purpose::Keda),
    ModuleFile::of("keda-metrics-role-binding.yaml", "config/metrics-server/role_binding.yaml", Purpose::Keda),
    ModuleFile::of("keda-metrics-api.yaml", "config/metrics-server/api_service.yaml", Purpose::Keda),
];

impl Program {
    const fn of(name: &'static str, package: &'static str, purpose: Purpose) -> Self {
        Self { name, package, purpose }
    }

    /// How Go names it: after the folder of its package. Ours are named after their modules, as here.
    fn built_as(&self) -> &'static str {
        let folder = self.package.rsplit('/').next().unwrap_or(self.package);
        if folder == "." { self.name } else { folder }
    }
}

impl ModuleFile {
    const fn of(name: &'static str, path: &'static str, purpose: Purpose) -> Self {
        Self { name, path, purpose }
    }
}

impl Profile {
    /// The profile that is used where none is named.
    pub fn newest() -> &'static Self {
        &PROFILES[PROFILES.len() - 1]
    }

    /// The profile of that name.
    ///
    /// # Errors
    /// [`ProgramError::UnknownProfile`] lists those there are.
    pub fn named(name: &str) -> Result<&'static Self, ProgramError> {
        PROFILES.iter().find(|profile| profile.name == name).ok_or_else(|| ProgramError::UnknownProfile {
            name: name.to_owned(),
            known: PROFILES.iter().map(|profile| profile.name).collect::<Vec<_>>().join(", "),
        })
    }
}

/// Why there is a program missing.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The table has no such row.
    #[error("there is no profile `{name}`; known are: {known}")]
    UnknownProfile {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A file or folder of the cache or of a module.
    #[error("cannot {attempt} {}", path.display())]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Go said no.
    #[error("building `{module}` failed")]
    Build {
        /// The folder of the module.
        module: String,
        /// What Go said.
        #[source]
        source: RunError,
    },
    /// A path was asked for that the purposes do not cover.
    #[error("the program `{0}` was not among those built")]
    NotBuilt(String),
}

/// Programs that are built, and files that are kept with them, by name.
#[derive(Debug, Clone)]
pub struct Programs(BTreeMap<&'static str, PathBuf>);

impl Programs {
    /// Where the program or file of that name lies.
    ///
    /// # Errors
    /// [`ProgramError::NotBuilt`] if the purposes that were asked for do not need it.
    pub fn path(&self, name: &str) -> Result<&Path, ProgramError> {
        self.0.get(name).map(PathBuf::as_path).ok_or_else(|| ProgramError::NotBuilt(name.to_owned()))
    }

    /// All of them, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.0.iter().map(|(name, path)| (*name, path.as_path()))
    }
}

/// The folder for what is made once and kept: `$ORTOLAN_CACHE`, or else `.cache` at the root of the repository.
pub fn cache_folder() -> PathBuf {
    match std::env::var_os("ORTOLAN_CACHE") {
        Some(folder) => PathBuf::from(folder),
        None => package_folder().parent().unwrap_or(package_folder()).join(".cache"),
    }
}

/// Builds what `purposes` need and the cache lacks.
///
/// # Errors
/// Says which module failed, with the compiler's words.
pub fn ensure(profile: &Profile, purposes: &[Purpose], report: Report) -> Result<Programs, ProgramError> {
    let go_version = run::output(Command::new("go").args(["env", "GOVERSION"]))
        .map_err(|source| ProgramError::Build { module: "go".to_owned(), source })?;
    let mut programs = BTreeMap::new();
    for module in profile.modules {
        let wanted: Vec<&Program> =
            module.programs.iter().filter(|program| purposes.contains(&program.purpose)).collect();
        let files: Vec<&ModuleFile> = module.files.iter().filter(|file| purposes.contains(&file.purpose)).collect();
        if wanted.is_empty() && files.is_empty() {
            continue;
        }
        let shelf = Shelf::of(module, &go_version)?;
        shelf.fill(&wanted, report)?;
        shelf.copy(&files)?;
        programs.extend(wanted.iter().map(|program| (program.name, shelf.path_of(program))));
        programs.extend(files.iter().map(|file| (file.name, shelf.folder.join(file.name))));
    }
    Ok(Programs(programs))
}

/// The part of the cache that holds one module in one form.
struct Shelf<'a> {
    module: &'a Module,
    source: PathBuf,
    folder: PathBuf,
}

impl<'a> Shelf<'a> {
    fn of(module: &'a Module, go_version: &str) -> Result<Self, ProgramError> {
        let source = package_folder().join("programs").join(module.folder);
        let key = key_of(module, &source, go_version)?;
        let folder = cache_folder().join("programs").join(format!("{}-{key}", module.folder));
        Ok(Self { module, source, folder })
    }

    fn path_of(&self, program: &Program) -> PathBuf {
        self.folder.join(program.name)
    }

    fn missing<'p>(&self, wanted: &[&'p Program]) -> Vec<&'p Program> {
        wanted.iter().copied().filter(|program| !self.path_of(program).exists()).collect()
    }

    fn fill(&self, wanted: &[&Program], report: Report) -> Result<(), ProgramError> {
        if self.missing(wanted).is_empty() {
            return Ok(());
        }
        fs::create_dir_all(&self.folder).map_err(file_error("create", &self.folder))?;
        let _lock = self.lock()?;
        // Asked again: whoever held the lock may have built them.
        let missing = self.missing(wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let names = missing.iter().map(|program| program.name).collect::<Vec<_>>().join(", ");
        let Module { requires, version, .. } = self.module;
        let step = report.step(format!("build {names} ({requires} {version})"));
        self.build(&missing)?;
        step.done();
        Ok(())
    }

    fn copy(&self, wanted: &[&ModuleFile]) -> Result<(), ProgramError> {
        let is_missing = |file: &&&ModuleFile| !self.folder.join(file.name).exists();
        if !wanted.iter().any(|file| is_missing(&file)) {
            return Ok(());
        }
        fs::create_dir_all(&self.folder).map_err(file_error("create", &self.folder))?;
        let _lock = self.lock()?;
        let module = self.module.download(&self.source)?;
        for file in wanted.iter().filter(is_missing) {
            let (from, partial) = (module.join(file.path), self.folder.join(".partial"));
            fs::copy(&from, &partial).map_err(file_error("copy", &from))?;
            let path = self.folder.join(file.name);
            fs::rename(&partial, &path).map_err(file_error("publish", &path))?;
        }
        Ok(())
    }

    /// Held until dropped; a process that dies lets go of it.
    fn lock(&self) -> Result<File, ProgramError> {
        let path = self.folder.join(".lock");
        let file = File::create(&path).map_err(file_error("create", &path))?;
        file.lock().map_err(file_error("lock", &path))?;
        Ok(file)
    }

    fn build(&self, missing: &[&Program]) -> Result<(), ProgramError> {
        let workshop = self.folder.join(".build");
        fs::create_dir_all(&workshop).map_err(file_error("create", &workshop))?;
        let mut go = Command::new("go");
        go.current_dir(&self.source).env("CGO_ENABLED", "0").env("GOWORK", "off").env("GOFLAGS", "-buildvcs=false");
        // The linker drops debug information, so it is not made first: a seventh of the time.
        go.args(["build", "-trimpath", "-gcflags=all=-dwarf=false", "-tags", self.module.build_tags]);
        go.args(["-ldflags", &self.module.linker_flags(), "-o"]).arg(workshop.join(""));
        go.args(missing.iter().map(|program| program.package));
        let module = self.module.folder.to_owned();
        run::output(&mut go).map_err(|source| ProgramError::Build { module, source })?;
        for program in missing {
            // A rename is whole or not at all, so nobody ever runs half a program.
            let path = self.path_of(program);
            fs::rename(workshop.join(program.built_as()), &path).map_err(file_error("publish", &path))?;
        }
        fs::remove_dir_all(&workshop).map_err(file_error("remove", &workshop))
    }
}

impl Module {
    fn linker_flags(&self) -> String {
        let variables = self.version_variables.iter().map(|(variable, value)| format!(" -X {variable}={value}"));
        format!("-s -w{}", variables.collect::<String>())
    }
}

impl Module {
    /// Brings the required module alone, checked by `go.sum`. Returns its folder.
    fn download(&self, source: &Path) -> Result<PathBuf, ProgramError> {
        let mut go = Command::new("go");
        go.current_dir(source).env("GOWORK", "off").args(["mod", "download", "-json", self.requires]);
        let module = self.folder.to_owned();
        let told = run::output(&mut go).map_err(|source| ProgramError::Build { module, source })?;
        let told: serde_json::Value = serde_json::from_str(&told).unwrap_or_default();
        Ok(PathBuf::from(told["Dir"].as_str().unwrap_or_default()))
    }
}

fn key_of(module: &Module, source: &Path, go_version: &str) -> Result<String, ProgramError> {
    let mut hash = Sha256::new();
    hash.update(go_version);
    hash.update(module.build_tags);
    hash.update(module.linker_flags());
    for path in files_of(source)? {
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(fs::read(&path).map_err(file_error("read", &path))?);
    }
    Ok(hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}

fn files_of(folder: &Path) -> Result<Vec<PathBuf>, ProgramError> {
    let entries = fs::read_dir(folder).map_err(file_error("list", folder))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(file_error("list", folder))?.path());
    }
    paths.sort();
    Ok(paths)
}

fn package_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn file_error(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ProgramError {
    let path = path.to_owned();
    move |source| ProgramError::File { attempt, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_and_each_go_mod_name_the_same_version() {
        for module in PROFILES.iter().flat_map(|profile| profile.modules).filter(|module| module.requires != OUR_OWN) {
            let path = package_folder().join("programs").join(module.folder).join("go.mod");
            let text = fs::read_to_string(&path).unwrap();
            let wanted = format!("{} {}", module.requires, module.version);
            assert!(text.contains(&wanted), "{} does not require {wanted}", path.display());
        }
    }
}
