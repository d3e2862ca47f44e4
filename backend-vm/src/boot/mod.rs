//! What a machine does at each boot: user data that cloud-init runs. Pure.
//!
//! A boothook, as other scripts run at the first boot alone, and an environment may change while the machine is stopped; see
//! <https://docs.cloud-init.io/en/latest/explanation/format/cloud-boothook.html>.

use std::{fmt::Write as _, io::Write as _};

use flate2::{Compression, write::GzEncoder};
use provisioner_core::{
    secret::SecretReference,
    types::{InstanceSpec, InvalidSpec},
};

/// How much user data a machine takes, before it is encoded:
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-add-user-data.html>.
pub(crate) const BYTES_MAX: usize = 16 * 1024;
/// What mounts the data.
const VOLUME: &str = include_str!("volume.sh");
/// The port that a product listens on when the spec does not say. `validate` demands one, so this is for what is forgotten.
const PORT: u16 = 8080;
/// Where the data is when the spec does not say.
const DATA_PATH: &str = "/data";
/// The schemes of references that a machine resolves by itself.
pub(crate) const SECRETS_MANAGER: &str = "secretsmanager";
pub(crate) const PARAMETER_STORE: &str = "ssm";

/// Where a product listens.
pub(crate) fn port(spec: &InstanceSpec) -> u16 {
    spec.workload.port.unwrap_or(PORT)
}

/// What a machine is to know of its data volume.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Disk<'a> {
    /// Whether it may be an empty one.
    pub(crate) may_format: bool,
    /// Its id, where it was there before the machine.
    pub(crate) id: Option<&'a str>,
}

/// The user data of a target.
///
/// # Errors
/// When it is too long, also compressed.
pub(crate) fn user_data(spec: &InstanceSpec, region: &str, disk: Disk<'_>) -> Result<Vec<u8>, InvalidSpec> {
    let script = script(spec, region, disk);
    let mut bytes = script.into_bytes();
    if bytes.len() > BYTES_MAX {
        // The same bytes each time: what is the same must look the same.
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(&bytes).expect("memory takes it");
        bytes = packed.finish().expect("memory takes it");
    }
    if bytes.len() > BYTES_MAX {
        let problem = format!(
            "{} bytes of user data with the environment, compressed: expected up to {BYTES_MAX}; a script can fetch the rest",
            bytes.len()
        );
        return Err(InvalidSpec::new("workload.boot_script", problem));
    }
    Ok(bytes)
}

/// The script. `PROVISIONER_ROOT` is empty on a machine: tests run it in a folder.
pub(crate) fn script(spec: &InstanceSpec, region: &str, disk: Disk<'_>) -> String {
    let may_format = if disk.may_format { "yes" } else { "no" };
    let volume = quoted(disk.id.unwrap_or_default());
    let data_path = spec.workload.data_path.as_deref().unwrap_or(DATA_PATH);
    let mounted_at = quoted(data_path);
    let mut variables = format!("export PORT={}\nexport DATA_PATH={mounted_at}\n", port(spec));
    for (name, value) in &spec.environment {
        let _ = writeln!(variables, "export {name}={}", quoted(value));
    }
    let mut secrets = String::new();
    for (name, reference) in &spec.secrets {
        let _ = writeln!(secrets, "{name}=\"$({})\"\nexport {name}", fetch(reference, region));
    }
    let start = match &spec.workload.boot_script {
        Some(script) => script.clone(),
        None => {
            format!("exec{}\n", spec.workload.command.iter().fold(String::new(), |all, part| all + " " + &quoted(part)))
        }
    };
    let end = delimiter(&[&variables, &secrets, &start, VOLUME]);
    let grace = spec.workload.stop_grace_seconds.max(1);
    format!(
        r#"#cloud-boothook
#!/bin/sh
set -eu
umask 077
root="${{PROVISIONER_ROOT:-}}"
home="$root/etc/provisioner"
mkdir -p "$home" "$root/etc/systemd/system"
cat > "$home/environment" <<'{end}'
{variables}{end}
cat > "$home/secrets" <<'{end}'
{secrets}{end}
cat > "$home/product" <<'{end}'
{start}
{end}
cat > "$home/volume" <<'{end}'
{VOLUME}{end}
cat > "$home/start" <<'{end}'
#!/bin/sh
set -eu
home="${{PROVISIONER_ROOT:-}}/etc/provisioner"
DATA_PATH={mounted_at} VOLUME={volume} MAY_FORMAT={may_format} sh "$home/volume"
. "$home/environment"
. "$home/secrets"
exec sh "$home/product"
{end}
cat > "$home/grow" <<'{end}'
data={mounted_at}
if mountpoint -q "$data"; then resize2fs "$(findmnt -nvro SOURCE "$data")"; fi
{end}
cat > "$root/etc/systemd/system/provisioner-grow.service" <<'{end}'
[Unit]
Description=The file system of the data follows its volume
[Service]
Type=oneshot
ExecStart=/bin/sh /etc/provisioner/grow
{end}
cat > "$root/etc/systemd/system/provisioner-grow.timer" <<'{end}'
[Timer]
OnActiveSec=60
OnUnitActiveSec=60
{end}
cat > "$root/etc/systemd/system/provisioner-product.service" <<'{end}'
[Unit]
Description=The product
Wants=network-online.target
After=network-online.target
[Service]
ExecStart=/bin/sh /etc/provisioner/start
Restart=always
RestartSec=2
TimeoutStopSec={grace}
[Install]
WantedBy=multi-user.target
{end}
systemctl daemon-reload
systemctl start --no-block provisioner-grow.timer
systemctl enable provisioner-product.service
systemctl start --no-block provisioner-product.service
"#
    )
}

/// How a machine fetches a secret, with the rights of its profile.
fn fetch(reference: &SecretReference, region: &str) -> String {
    // Older command lines do not ask the machine where it is.
    let (path, region) = (quoted(reference.path()), quoted(region));
    match reference.scheme() {
        SECRETS_MANAGER => {
            format!(
                "aws --region {region} secretsmanager get-secret-value --secret-id {path} --query SecretString --output text"
            )
        }
        _ => format!(
            "aws --region {region} ssm get-parameter --with-decryption --name {path} --query Parameter.Value --output text"
        ),
    }
}

/// A word for the shell that is this text and nothing else.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A line that none of these texts has.
fn delimiter(texts: &[&str]) -> String {
    let is_free = |end: &String| !texts.iter().any(|text| text.lines().any(|line| line == end));
    let mut ends = (0_u32..).map(|n| format!("END_{n}"));
    ends.find(is_free).expect("texts end")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use provisioner_core::types::{VariableName, Workload};

    use super::*;

    const FRESH: Disk<'_> = Disk { may_format: true, id: None };

    fn spec() -> InstanceSpec {
        let mut workload = Workload::new("1.0").with_command(["/opt/product", "it's"]);
        workload.port = Some(80);
        InstanceSpec::new(workload)
    }

    #[test]
    fn values_are_words_of_the_shell_whatever_is_in_them() {
        let mut spec = spec();
        let value = "a 'b' $(touch /tmp/x) `id`\nEND_0\nlast";
        spec.environment.insert(VariableName::new("KEY").unwrap(), value.into());
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        let shim = folder.path().join("bin/systemctl");
        std::fs::write(&shim, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&shim, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let script = script(&spec, "r", FRESH);
        let run = |script: &str| {
            let path = format!("{}:{}", folder.path().join("bin").display(), std::env::var("PATH").unwrap());
            let output = std::process::Command::new("sh")
                .args(["-c", script])
                .env("PATH", path)
                .env("PROVISIONER_ROOT", folder.path())
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        run(script.strip_prefix("#cloud-boothook\n").unwrap());
        let read = format!(". {}/etc/provisioner/environment; printf %s \"$KEY\"", folder.path().display());
        assert_eq!(run(&read), value);
        let product = std::fs::read_to_string(folder.path().join("etc/provisioner/product")).unwrap();
        assert_eq!(product, "exec '/opt/product' 'it'\\''s'\n\n");
    }

    #[test]
    fn only_data_that_is_fresh_may_be_formatted() {
        assert!(script(&spec(), "r", FRESH).contains("MAY_FORMAT=yes "));
        assert!(script(&spec(), "r", Disk::default()).contains("MAY_FORMAT=no "));
    }

    /// Mounts the data where these programs tell of the disks; what was done, and what was said.
    fn mounted(programs: &[(&str, &str)], may_format: bool) -> (String, String) {
        mounted_of(&[], programs, may_format)
    }

    /// The same where disks have serial numbers.
    fn mounted_of(serials: &[(&str, &str)], programs: &[(&str, &str)], may_format: bool) -> (String, String) {
        let folder = tempfile::tempdir().unwrap();
        let usual = [
            ("findmnt", "echo /dev/nvme0n1p1"),
            (
                "lsblk",
                "case \"$1\" in -nrso) printf 'nvme0n1p1\\nnvme0n1\\n';; *) printf 'nvme0n1 disk 8 M\\nnvme1n1 disk 1 M\\n';; esac",
            ),
            ("blkid", "exit 2"),
            ("head", "exit 0"),
            ("mountpoint", "exit 1"),
            ("mkfs.ext4", "echo format $2 >> $PROVISIONER_ROOT/done"),
            ("mount", "echo mount $1 >> $PROVISIONER_ROOT/done"),
            ("resize2fs", "exit 0"),
        ];
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        for (disk, serial) in serials {
            let device = folder.path().join("sys/block").join(disk).join("device");
            std::fs::create_dir_all(&device).unwrap();
            std::fs::write(device.join("serial"), format!("{serial}   \n")).unwrap();
        }
        for (name, program) in usual.iter().chain(programs) {
            let path = folder.path().join("bin").join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{program}\n")).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let output = std::process::Command::new("sh")
            .args(["-c", VOLUME])
            .env("PATH", format!("{}:{}", folder.path().join("bin").display(), std::env::var("PATH").unwrap()))
            .env("PROVISIONER_ROOT", folder.path())
            .env("DATA_PATH", "/data")
            .env("VOLUME", "vol-0a")
            .env("MAY_FORMAT", if may_format { "yes" } else { "no" })
            .output()
            .unwrap();
        let done = std::fs::read_to_string(folder.path().join("done")).unwrap_or_default();
        (done, String::from_utf8(output.stderr).unwrap())
    }

    const FORMATTED: &str = "format /dev/nvme1n1\nmount /dev/nvme1n1\n";

    #[test]
    fn the_one_disk_without_a_part_of_the_system_is_the_data_however_that_is_laid_out() {
        let disks =
            |system: &str, all: &str| format!("case \"$1\" in -nrso) printf '{system}';; *) printf '{all}';; esac");
        let two = r"nvme0n1 disk 8 M\nnvme1n1 disk 1 M\n";
        for (system, all) in [
            (r"nvme0n1p1\nnvme0n1\n", two),
            // No partitions; LVM; compressed memory and a disk that goes with the machine beside.
            (r"nvme0n1\n", two),
            (r"vg-root\nnvme0n1p3\nnvme0n1\n", two),
            (
                r"nvme0n1p1\nnvme0n1\n",
                r"zram0 disk 4 \nnvme2n1 disk 9 Amazon\\x20EC2\\x20NVMe\\x20Instance\\x20Storage\nnvme0n1 disk 8 M\nnvme1n1 disk 1 M\n",
            ),
        ] {
            let lsblk = disks(system, all);
            assert_eq!(mounted(&[("lsblk", &lsblk)], true), (FORMATTED.to_owned(), String::new()), "{system} {all}");
        }
        let three = disks(r"nvme0n1\n", r"nvme0n1 disk 8 M\nnvme1n1 disk 1 M\nnvme2n1 disk 1 M\n");
        let (done, said) = mounted(&[("lsblk", &three)], true);
        assert!(done.is_empty() && said.contains("more than one disk"), "{done} {said}");
        let (done, _) = mounted(&[("findmnt", "echo overlay"), ("lsblk", "exit 32")], true);
        assert_eq!(done, "");
    }

    #[test]
    fn a_volume_that_was_there_before_is_known_by_its_number() {
        let both = "case \"$1\" in -nrso) echo nvme0n1;; *) printf 'nvme0n1 disk 8 M\nnvme1n1 disk 1 M\nnvme2n1 disk 1 M\n';; esac";
        let found = [("lsblk", both), ("blkid", "exit 0")];
        let (done, said) = mounted_of(&[("nvme1n1", "vol0b"), ("nvme2n1", "vol0a")], &found, false);
        assert_eq!((done.as_str(), said.as_str()), ("mount /dev/nvme2n1\n", ""));
        // One that comes late is waited for, whatever else is there; without numbers nobody can tell.
        let late = [
            ("lsblk", both),
            ("blkid", "exit 0"),
            ("sleep", "echo vol0a > $PROVISIONER_ROOT/sys/block/nvme2n1/device/serial"),
        ];
        let (done, _) = mounted_of(&[("nvme1n1", "vol0b"), ("nvme2n1", "vol0c")], &late, false);
        assert_eq!(done, "mount /dev/nvme2n1\n");
        let (done, said) = mounted_of(&[], &found, false);
        assert!(done.is_empty() && said.contains("more than one disk"), "{done} {said}");
    }

    #[test]
    fn nothing_of_the_boot_waits_for_units() {
        // Boothooks run before those that units wait for.
        let script = script(&spec(), "r", FRESH);
        let starts: Vec<_> = script.lines().filter(|line| line.contains("systemctl start")).collect();
        assert!(starts.len() == 2 && starts.iter().all(|line| line.contains("--no-block")), "{starts:?}");
    }

    #[test]
    fn nothing_is_formatted_but_what_is_empty_and_may_be() {
        assert_eq!(mounted(&[("blkid", "exit 0")], true).0, "mount /dev/nvme1n1\n");
        for (blkid, may_format) in [("exit 2", false), ("exit 8", true), ("exit 4", true)] {
            let (done, said) = mounted(&[("blkid", blkid)], may_format);
            assert!(done.is_empty() && said.contains("data volume"), "{blkid} {done} {said}");
        }
        // Something that blkid does not know, and what cannot be read.
        for head in ["printf x", "exit 1"] {
            let (done, said) = mounted(&[("head", head)], true);
            assert!(done.is_empty() && said.contains("not empty"), "{head} {done} {said}");
        }
        let there = [("mountpoint", "exit 0"), ("findmnt", "echo /dev/nvme0n1p1")];
        let (done, said) = mounted(&there, true);
        assert!(done.is_empty() && said.contains("another file system"), "{done} {said}");
    }

    #[test]
    fn secrets_are_fetched_and_their_values_are_nowhere() {
        let mut spec = spec();
        spec.secrets.insert(VariableName::new("A").unwrap(), "secretsmanager:prod/db".parse().unwrap());
        spec.secrets.insert(VariableName::new("B").unwrap(), "ssm:/prod/key".parse().unwrap());
        let script = script(&spec, "r", FRESH);
        assert!(script.contains("A=\"$(aws --region 'r' secretsmanager get-secret-value --secret-id 'prod/db' "));
        assert!(script.contains("B=\"$(aws --region 'r' ssm get-parameter --with-decryption --name '/prod/key' "));
    }

    #[test]
    fn what_is_long_is_compressed_and_what_is_too_long_is_refused() {
        let mut spec = spec();
        assert!(user_data(&spec, "r", FRESH).unwrap().starts_with(b"#cloud-boothook"));
        spec.workload.boot_script = Some("echo one\n".repeat(3_000));
        let packed = user_data(&spec, "r", FRESH).unwrap();
        assert_eq!(packed, user_data(&spec, "r", FRESH).unwrap());
        let mut plain = String::new();
        flate2::read::GzDecoder::new(&*packed).read_to_string(&mut plain).unwrap();
        assert_eq!(plain, script(&spec, "r", FRESH));
        let random = provisioner_core::seams::Random::from_seed(1);
        spec.workload.boot_script = Some((0..2_000).map(|_| format!("{:032x}", random.bits())).collect());
        let error = user_data(&spec, "r", FRESH).unwrap_err();
        assert_eq!(error.field(), "workload.boot_script");
    }
}
