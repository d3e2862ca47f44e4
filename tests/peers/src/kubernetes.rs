//! The Kubernetes cluster for tests: that of `KUBECONFIG`, or the one that `cargo xtask peers` made.
//!
//! `kubernetes/README.md` beside this package says how it is made and what it holds.

#[cfg(feature = "client")]
pub mod volumes;

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt, fs, io,
    path::{Path, PathBuf},
    process::{self, Command, Output, Stdio},
};

/// What the cluster is called that `kind` makes for the tests.
pub const KIND_NAME: &str = "provisioner-tests";

/// A cluster that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    origin: Origin,
    kubeconfig: OsString,
}

/// Whose cluster it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Somebody named it in `KUBECONFIG`. Nobody here starts, stops or fills it.
    Named,
    /// `kind` made it for the tests.
    Kind,
    /// The scripts of this package made it.
    Scripts,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Named => "that of KUBECONFIG",
            Self::Kind => "made with kind",
            Self::Scripts => "made of Debian's packages",
        })
    }
}

/// Whether the owner of a cluster says that its nodes have the images.
fn has_images() -> bool {
    env::var("KUBERNETES_HAS_IMAGES").is_ok_and(|has| has == "1")
}

impl Cluster {
    /// Finds the cluster that tests use: that of `KUBECONFIG` if it is set, else the one of [`own_kubeconfig`].
    ///
    /// # Errors
    /// The reason for which tests are ignored, where no cluster is or answers.
    pub fn find() -> Result<Self, String> {
        let own = own_kubeconfig()?;
        let text = match fs::read_to_string(&own) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!("{} cannot be read: {error}", own.display()));
            }
            text => text.ok(),
        };
        let chosen = Self::chosen(env::var_os("KUBECONFIG").as_deref(), &own, text.as_deref())?;
        chosen.ask()?;
        Ok(chosen)
    }

    /// Which it is, whether or not it answers. `text` is what the file at `own` holds.
    fn chosen(named: Option<&OsStr>, own: &Path, text: Option<&str>) -> Result<Self, String> {
        if let Some(named) = another(named, own) {
            return Ok(Self { origin: Origin::Named, kubeconfig: named.to_owned() });
        }
        let text = text.ok_or("there is no Kubernetes cluster; cargo xtask peers brings one up")?;
        // `kind` calls its contexts so.
        let by_kind = text.contains(&format!("kind-{KIND_NAME}"));
        let origin = if by_kind { Origin::Kind } else { Origin::Scripts };
        Ok(Self { origin, kubeconfig: own.as_os_str().to_owned() })
    }

    /// Whose cluster it is.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// Names the file with the way to it, as the variable `KUBECONFIG` would: with colons, if there are several.
    #[must_use]
    pub fn kubeconfig(&self) -> &OsStr {
        &self.kubeconfig
    }

    /// Makes an image and brings it onto the cluster, where pods use it with `imagePullPolicy: Never`.
    ///
    /// # Errors
    /// Where the cluster is that of `KUBECONFIG`, whose nodes cannot be reached, and where a program fails.
    pub fn load(&self, image: &Image) -> Result<(), String> {
        match self.origin {
            Origin::Named if has_images() => Ok(()),
            Origin::Named => Err(format!(
                "{} cannot be brought onto the cluster of KUBECONFIG: only its owner can reach its nodes, and says by \
                 KUBERNETES_HAS_IMAGES=1 that it is there. Without KUBECONFIG, cargo xtask peers makes a cluster where that \
                 is possible",
                image.name
            )),
            Origin::Scripts => output(&mut image.making(None)?).map(drop),
            Origin::Kind => {
                let name = format!("{KIND_NAME}-{}-{}.tar", process::id(), image.name.replace(['/', ':'], "_"));
                let archive = env::temp_dir().join(name);
                let loaded = output(&mut image.making(Some(&archive))?).and_then(|_| {
                    output(Command::new("kind").args(["load", "image-archive", "--name", KIND_NAME]).arg(&archive))
                });
                // It may be that there is none.
                let _ = fs::remove_file(&archive);
                loaded.map(drop)
            }
        }
    }

    fn ask(&self) -> Result<(), String> {
        let mut command = Command::new("kubectl");
        command.args(["get", "--raw", "/readyz", "--request-timeout=5s"]).env("KUBECONFIG", &self.kubeconfig);
        output(&mut command).map(drop).map_err(|error| match self.origin {
            Origin::Named => format!("the Kubernetes cluster of KUBECONFIG does not answer: {error}"),
            Origin::Kind | Origin::Scripts => {
                format!("the Kubernetes cluster does not answer; cargo xtask peers brings it up ({error})")
            }
        })
    }
}

/// An image of a program of this machine, with the shared libraries that it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    name: String,
    program: PathBuf,
    files: Vec<(PathBuf, PathBuf)>,
    stop_signal: Option<String>,
}

impl Image {
    /// Names one `localhost/NAME:TAG`. Its entry point is the program, which lies at its root.
    #[must_use]
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), program: program.into(), files: Vec::new(), stop_signal: None }
    }

    /// The same with a file at this path. One that is executable keeps that, and brings the shared libraries it needs.
    #[must_use]
    pub fn with_file(mut self, file: impl Into<PathBuf>, path: impl Into<PathBuf>) -> Self {
        self.files.push((file.into(), path.into()));
        self
    }

    /// The same with containers that are stopped by this signal instead of `TERM`, which a program gets as process 1 of a
    /// container only if it asks for it.
    #[must_use]
    pub fn stopped_by(mut self, signal: impl Into<String>) -> Self {
        self.stop_signal = Some(signal.into());
        self
    }

    /// The script that makes it: on the cluster that the scripts made, or as this archive.
    fn making(&self, archive: Option<&Path>) -> Result<Command, String> {
        let mut command = script("image")?;
        command.env("IMAGE_STOP_SIGNAL", self.stop_signal.as_deref().unwrap_or_default());
        if let Some(archive) = archive {
            command.arg("--archive").arg(archive);
        }
        command.arg(&self.name).arg(&self.program);
        for (file, path) in &self.files {
            let mut pair = file.clone().into_os_string();
            pair.push("=");
            pair.push(path);
            command.arg(pair);
        }
        Ok(command)
    }
}

/// Whether a run does not count without a cluster: `REQUIRED_PEERS` names `kubernetes`.
#[must_use]
pub fn is_required() -> bool {
    crate::is_required("kubernetes")
}

/// Whether `KUBECONFIG` names a cluster other than the one that is made here. Then tests take no other.
///
/// # Errors
/// Where the user has no home.
pub fn is_named() -> Result<bool, String> {
    Ok(another(env::var_os("KUBECONFIG").as_deref(), &own_kubeconfig()?).is_some())
}

/// What is named, unless it is nothing or ours: somebody may have set the variable as the scripts propose.
fn another<'a>(named: Option<&'a OsStr>, own: &Path) -> Option<&'a OsStr> {
    named.filter(|named| !named.is_empty() && Path::new(named) != own)
}

/// Names the folder of the cluster that is made here: `K8S_DIR`, or one in the user's cache.
///
/// # Errors
/// Where the user has no home.
pub fn folder() -> Result<PathBuf, String> {
    let [chosen, cache, home] = ["K8S_DIR", "XDG_CACHE_HOME", "HOME"].map(env::var_os);
    folder_of(chosen, cache, home).ok_or_else(|| "neither K8S_DIR nor HOME is set".to_owned())
}

/// As `lib.sh` has it.
fn folder_of(chosen: Option<OsString>, cache: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let [chosen, cache, home] = [chosen, cache, home].map(|value| value.filter(|it| !it.is_empty()).map(PathBuf::from));
    chosen.or_else(|| Some(cache.or_else(|| Some(home?.join(".cache")))?.join("provisioner/kubernetes")))
}

/// Names the file with the way to the cluster that is made here, whether or not there is one.
///
/// # Errors
/// Where the user has no home.
pub fn own_kubeconfig() -> Result<PathBuf, String> {
    Ok(folder()?.join("kubeconfig"))
}

/// Prepares to run one of the scripts that make a cluster.
///
/// # Errors
/// Where the user has no home.
pub fn script(name: &str) -> Result<Command, String> {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes").join(name));
    command.env("K8S_DIR", folder()?).stdin(Stdio::null());
    Ok(command)
}

/// Runs a program; what it said last, where it fails.
fn output(command: &mut Command) -> Result<Output, String> {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program()).to_owned();
    let program = program.to_string_lossy();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{program} does not start: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing");
    Err(format!("{program}: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(named: Option<&str>, text: Option<&str>) -> Result<Cluster, String> {
        Cluster::chosen(named.map(OsStr::new), Path::new("/cache/kubeconfig"), text)
    }

    #[test]
    fn a_named_cluster_comes_before_one_that_was_made() {
        for text in [None, Some("current-context: local")] {
            let cluster = chosen(Some("/home/me/a:/home/me/b"), text).unwrap();
            assert_eq!((cluster.origin(), cluster.kubeconfig()), (Origin::Named, OsStr::new("/home/me/a:/home/me/b")));
        }
    }

    #[test]
    fn who_made_a_cluster_is_told_from_its_file_also_when_that_is_named() {
        for named in [None, Some(""), Some("/cache/kubeconfig")] {
            let origin = |text| chosen(named, Some(text)).unwrap().origin();
            assert_eq!(origin("current-context: local"), Origin::Scripts);
            assert_eq!(origin("current-context: kind-provisioner-tests"), Origin::Kind);
        }
    }

    #[test]
    fn where_there_is_none_the_reason_says_what_to_do() {
        assert!(chosen(None, None).unwrap_err().contains("cargo xtask peers"));
    }

    #[test]
    fn the_folder_is_chosen_or_in_the_cache() {
        let folder = |chosen: &str, cache: &str, home: &str| {
            let [chosen, cache, home] = [chosen, cache, home].map(|text| Some(OsString::from(text)));
            folder_of(chosen, cache, home).map(|folder| folder.display().to_string())
        };
        assert_eq!(folder("/k", "/c", "/h").unwrap(), "/k");
        assert_eq!(folder("", "/c", "/h").unwrap(), "/c/provisioner/kubernetes");
        assert_eq!(folder("", "", "/h").unwrap(), "/h/.cache/provisioner/kubernetes");
        assert_eq!(folder("", "", ""), None);
        assert_eq!(folder_of(None, None, None), None);
    }

    #[test]
    fn a_named_cluster_takes_no_image() {
        let image = Image::new("localhost/a:1", "/bin/true");
        let error = chosen(Some("/else"), None).unwrap().load(&image).unwrap_err();
        assert!(error.contains("localhost/a:1") && error.contains("KUBECONFIG"), "{error}");
    }

    #[test]
    fn an_image_has_its_files_and_their_libraries() {
        let folder = env::temp_dir().join(format!("test-peers-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let archive = folder.join("image.tar");
        let image = Image::new("localhost/a:1", "/bin/true").with_file("/bin/ls", "/more/ls");
        let image = image.with_file("/etc/passwd", "/more/data").stopped_by("SIGKILL");
        output(&mut image.making(Some(&archive)).unwrap()).unwrap();
        let text =
            |command: &mut Command| String::from_utf8(output(command.current_dir(&folder)).unwrap().stdout).unwrap();
        text(Command::new("tar").args(["-xf", "image.tar"]));
        assert!(fs::read_to_string(folder.join("config.json")).unwrap().contains("\"StopSignal\":\"SIGKILL\""));
        let listed = text(Command::new("tar").args(["-tvf", "layer.tar"]));
        let has = |mode: &str, path: &str| {
            listed.lines().any(|line| line.starts_with(mode) && line.ends_with(&format!(" .{path}")))
        };
        assert!(has("-rwxr-xr-x", "/true") && has("-rwxr-xr-x", "/more/ls"), "{listed}");
        assert!(has("-rw-r--r--", "/more/data"), "{listed}");
        // Of both programs only this one needs more than the C library.
        let libraries = text(Command::new("ldd").arg("/bin/ls"));
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            assert!(has("-rwxr-xr-x", library), "{library} is missing:\n{listed}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_a_program_said_last_is_told() {
        let error = |text: &str| output(Command::new("sh").args(["-c", text])).unwrap_err();
        assert_eq!(error("echo one >&2; echo two >&2; echo >&2; exit 1"), "sh: two");
        assert_eq!(error("exit 1"), "sh: it said nothing");
        assert!(output(&mut Command::new("/no/such/program")).unwrap_err().starts_with("program does not start"));
    }
}
