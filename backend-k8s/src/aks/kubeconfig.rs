//! What the kubeconfig of a cluster says: where it is, and by what it knows who asks.

use http::uri::Scheme;
use kube::{
    Config,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use provisioner_azure::containers::AUDIENCE;

/// A way to a cluster.
pub(super) struct Way {
    pub(super) config: Config,
    /// For whom the tokens are that requests have to carry. `None`: the configuration has all that is needed.
    pub(super) scope: Option<String>,
}

/// Reads a kubeconfig. Runs nothing that it names.
///
/// # Errors
/// What is wrong with it. Nothing of its text is in that, as it may hold secrets.
pub(super) async fn read(text: &str) -> Result<Way, &'static str> {
    let kubeconfig = Kubeconfig::from_yaml(text).map_err(|_| "it is no kubeconfig")?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config = config.map_err(|error| problem(&error))?;
    let scope = scope_of(&mut config.auth_info);
    if scope.is_some() {
        if config.cluster_url.scheme() != Some(&Scheme::HTTPS) {
            return Err("the address of its cluster is not https, and tokens would be read on the way");
        }
        if config.accept_invalid_certs {
            return Err("it trusts whoever answers, and tokens could go to anybody");
        }
    }
    Ok(Way { config, scope })
}

/// The library's own words may quote what they are about.
fn problem(error: &KubeconfigError) -> &'static str {
    match error {
        KubeconfigError::CurrentContextNotSet => "it has no current context",
        KubeconfigError::LoadContext(_) => "its current context is not in it",
        KubeconfigError::LoadClusterOfContext(_) => "the cluster of its current context is not in it",
        KubeconfigError::MissingClusterUrl | KubeconfigError::ParseClusterUrl(_) => "its cluster has no address",
        KubeconfigError::LoadCertificateAuthority(_) | KubeconfigError::ParseCertificates(_) => {
            "the certificates of its cluster cannot be read"
        }
        _ => "it is incomplete",
    }
}

/// For whom tokens are, where the user of a kubeconfig is whoever a plugin signs in. The plugin is taken out: we sign in ourselves.
///
/// Clusters give either of two forms: a program to be run, `kubelogin`, or the plugin `azure` that clients had before it; see `format` of
/// <https://learn.microsoft.com/rest/api/aks/managed-clusters/list-cluster-user-credentials>.
fn scope_of(user: &mut AuthInfo) -> Option<String> {
    let (program, plugin) = (user.exec.take(), user.auth_provider.take());
    let server = match (&program, &plugin) {
        (None, None) => return None,
        (Some(program), _) => server_id(program.args.as_deref().unwrap_or_default()),
        (None, Some(plugin)) => plugin.config.get("apiserver-id").map(String::as_str),
    };
    let scope = match server.filter(|server| !server.is_empty()) {
        Some(server) => format!("{server}/.default"),
        None => AUDIENCE.to_owned(),
    };
    // The library would send these in place of our token.
    (user.token, user.token_file, user.username, user.password) = (None, None, None, None);
    Some(scope)
}

/// The option `--server-id`; see <https://azure.github.io/kubelogin/cli/get-token.html>.
fn server_id(arguments: &[String]) -> Option<&str> {
    let mut arguments = arguments.iter().map(String::as_str);
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix("--server-id") {
            Some("") => return arguments.next(),
            Some(value) if value.starts_with('=') => return value.strip_prefix('='),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(server: &str, user: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Config, current-context: c,\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}],\n\
             clusters: [{{name: c, cluster: {{server: \"{server}\"}}}}],\n\
             users: [{{name: u, user: {user}}}]}}\n"
        )
    }

    async fn scope(user: &str) -> Option<String> {
        let way =
            read(&text("https://cell-1.hcp.westeurope.azmk8s.io:443", user)).await.map_err(str::to_owned).unwrap();
        assert!(way.config.auth_info.exec.is_none() && way.config.auth_info.auth_provider.is_none());
        way.scope
    }

    #[tokio::test]
    async fn tokens_are_for_the_server_that_is_named() {
        let program = |args: &str| format!("{{exec: {{command: kubelogin, args: [{args}], apiVersion: v1beta1}}}}");
        let own = Some("6dae/.default".to_owned());
        assert_eq!(scope(&program("get-token, --server-id, 6dae, --login, devicecode")).await, own);
        assert_eq!(scope(&program("get-token, --server-id=6dae")).await, own);
        for without in ["", "get-token", "get-token, --server-id", "--server-id=", "--server-identity, a"] {
            assert_eq!(scope(&program(without)).await.as_deref(), Some(AUDIENCE), "{without}");
        }
        assert_eq!(scope("{exec: {command: kubelogin}}").await.as_deref(), Some(AUDIENCE));
        assert_eq!(scope("{auth-provider: {name: azure, config: {apiserver-id: 6dae}}}").await, own);
        assert_eq!(scope("{auth-provider: {name: azure, config: {}}}").await.as_deref(), Some(AUDIENCE));
        assert_eq!(scope("{token: secret}").await, None);
        assert_eq!(scope("{}").await, None);
    }

    #[tokio::test]
    async fn what_would_be_sent_in_place_of_a_token_is_taken_out() {
        let user = "{exec: {command: kubelogin}, token: t, username: u, password: p, tokenFile: /f}";
        let user = read(&text("https://a", user)).await.map_err(str::to_owned).unwrap().config.auth_info;
        assert!(
            user.token.is_none() && user.token_file.is_none() && user.username.is_none() && user.password.is_none()
        );
    }

    #[tokio::test]
    async fn tokens_go_nowhere_where_others_could_read_them() {
        let user = "{exec: {command: kubelogin}}";
        assert!(read(&text("http://a", user)).await.err().unwrap().contains("https"));
        assert!(read(&text("http://a", "{token: secret}")).await.is_ok());
        let trusting = text("https://a", user).replace("server:", "insecure-skip-tls-verify: true, server:");
        assert!(read(&trusting).await.err().unwrap().contains("trusts"));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_told_without_its_text() {
        let usual = text("https://a", "{token: secret}");
        for (broken, expected) in [
            (String::new(), "no current context"),
            ("secret".to_owned(), "no kubeconfig"),
            ("{secret: [".to_owned(), "no kubeconfig"),
            (usual.replace("current-context: c", "current-context: secret"), "current context is not in it"),
            (usual.replace("{cluster: c, user", "{cluster: secret, user"), "cluster of its current context"),
            (usual.replace("https://a", "https://secret secret"), "no address"),
            (usual.replace("server:", "certificate-authority-data: secret!, server:"), "certificates"),
        ] {
            let problem = read(&broken).await.err().unwrap();
            assert!(problem.contains(expected) && !problem.contains("secret"), "{problem}");
        }
    }
}
