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

/// The user data of a target.
///
/// # Errors
/// When it is too long, also compressed.
pub(crate) fn user_data(spec: &InstanceSpec, may_format: bool) -> Result<Vec<u8>, InvalidSpec> {
    let script = script(spec, may_format);
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
pub(crate) fn script(spec: &InstanceSpec, may_format: bool) -> String {
    let may_format = if may_format { "yes" } else { "no" };
    let data_path = spec.workload.data_path.as_deref().unwrap_or(DATA_PATH);
    let mut variables = format!("export PORT={}\nexport DATA_PATH={}\n", port(spec), quoted(data_path));
    for (name, value) in &spec.environment {
        let _ = writeln!(variables, "export {name}={}", quoted(value));
    }
    let mut secrets = String::new();
    for (name, reference) in &spec.secrets {
        let _ = writeln!(secrets, "{name}=\"$({})\"\nexport {name}", fetch(reference));
    }
    let start = match &spec.workload.boot_script {
        Some(script) => script.clone(),
        None => {
            format!("exec{}\n", spec.workload.command.iter().fold(String::new(), |all, part| all + " " + &quoted(part)))
        }
    };
    let end = delimiter(&[&variables, &secrets, &start]);
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
# Mounts the data: the one disk of the block store that does not hold the system.
set -eu
data="${{PROVISIONER_ROOT:-}}$DATA_PATH"
if mountpoint -q "$data"; then exit 0; fi
system="$(lsblk -nro PKNAME "$(findmnt -nro SOURCE /)" | head -n 1)"
disk() {{ lsblk -dnro NAME,TYPE,MODEL | awk -v root="$system" '$1 != root && $2 == "disk" && $0 !~ /Instance(\\x20| )Storage/ {{ print "/dev/" $1; exit }}'; }}
# One that is taken up is attached after the start.
tries=0
until [ -n "$(disk)" ]; do
    tries=$((tries + 1))
    if [ "$tries" -gt 600 ]; then echo "no data volume was attached" >&2; exit 1; fi
    sleep 0.5
done
volume="$(disk)"
if [ -z "$(blkid -o value -s TYPE "$volume" || true)" ]; then
    if [ {may_format} != yes ]; then echo "the data volume holds no file system" >&2; exit 1; fi
    mkfs.ext4 -q "$volume"
fi
mkdir -p "$data"
mount "$volume" "$data"
# It may have grown.
resize2fs "$volume" || true
{end}
cat > "$home/start" <<'{end}'
#!/bin/sh
set -eu
home="${{PROVISIONER_ROOT:-}}/etc/provisioner"
. "$home/environment"
sh "$home/volume"
. "$home/secrets"
exec sh "$home/product"
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
systemctl enable provisioner-product.service
systemctl start --no-block provisioner-product.service
"#
    )
}

/// How a machine fetches a secret, with the rights of its profile.
fn fetch(reference: &SecretReference) -> String {
    let path = quoted(reference.path());
    match reference.scheme() {
        SECRETS_MANAGER => {
            format!("aws secretsmanager get-secret-value --secret-id {path} --query SecretString --output text")
        }
        _ => format!("aws ssm get-parameter --with-decryption --name {path} --query Parameter.Value --output text"),
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
        let script = script(&spec, true);
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
        assert!(script(&spec(), true).contains("if [ yes != yes ]"));
        assert!(script(&spec(), false).contains("if [ no != yes ]"));
    }

    #[test]
    fn secrets_are_fetched_and_their_values_are_nowhere() {
        let mut spec = spec();
        spec.secrets.insert(VariableName::new("A").unwrap(), "secretsmanager:prod/db".parse().unwrap());
        spec.secrets.insert(VariableName::new("B").unwrap(), "ssm:/prod/key".parse().unwrap());
        let script = script(&spec, true);
        assert!(script.contains("A=\"$(aws secretsmanager get-secret-value --secret-id 'prod/db' "));
        assert!(script.contains("B=\"$(aws ssm get-parameter --with-decryption --name '/prod/key' "));
    }

    #[test]
    fn what_is_long_is_compressed_and_what_is_too_long_is_refused() {
        let mut spec = spec();
        assert!(user_data(&spec, true).unwrap().starts_with(b"#cloud-boothook"));
        spec.workload.boot_script = Some("echo one\n".repeat(3_000));
        let packed = user_data(&spec, true).unwrap();
        assert_eq!(packed, user_data(&spec, true).unwrap());
        let mut plain = String::new();
        flate2::read::GzDecoder::new(&*packed).read_to_string(&mut plain).unwrap();
        assert_eq!(plain, script(&spec, true));
        let random = provisioner_core::seams::Random::from_seed(1);
        spec.workload.boot_script = Some((0..2_000).map(|_| format!("{:032x}", random.bits())).collect());
        let error = user_data(&spec, true).unwrap_err();
        assert_eq!(error.field(), "workload.boot_script");
    }
}
