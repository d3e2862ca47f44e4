//! Keeps other web sites out: there is no login, so whatever a browser can be made to send would be done.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::problem::Problem;

/// Nothing but what this service itself serves, and no script or style inside the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Refuses what another web site makes a browser send, and tells browsers to load nothing from elsewhere.
pub(crate) async fn guard(request: Request, next: Next) -> Response {
    let mut response = match refusal(request.method(), request.headers()) {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn refusal(method: &Method, headers: &HeaderMap) -> Option<Problem> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"));
    let host = text(header::HOST);
    // A foreign name that was pointed at this machine would make a foreign page's requests look like ours.
    if host.is_some_and(|host| !is_loopback(host)) {
        let detail = "This service answers at a loopback address only.";
        return Some(Problem::new(StatusCode::MISDIRECTED_REQUEST, detail));
    }
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return None;
    }
    let foreign = match (text(header::HeaderName::from_static("sec-fetch-site")), text(header::ORIGIN)) {
        (Some(site), _) => !matches!(site, "same-origin" | "none"),
        // An old browser. A program that is no browser sends neither.
        (None, Some(origin)) => host.is_none_or(|host| origin.strip_prefix("http://") != Some(host)),
        (None, None) => false,
    };
    foreign.then(|| Problem::new(StatusCode::FORBIDDEN, "The request came from another web site."))
}

/// Whether the text of a `Host` header names this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: Method, headers: &[(&'static str, &'static str)]) -> Option<u16> {
        let headers = headers
            .iter()
            .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)));
        let response = refusal(&method, &headers.collect())?.into_response();
        Some(response.status().as_u16())
    }

    #[test]
    fn other_sites_may_change_nothing() {
        const HOST: (&str, &str) = ("host", "127.0.0.1:8080");
        assert_eq!(status(Method::POST, &[HOST]), None);
        assert_eq!(status(Method::POST, &[HOST, ("sec-fetch-site", "same-origin")]), None);
        assert_eq!(status(Method::POST, &[HOST, ("origin", "http://127.0.0.1:8080")]), None);
        assert_eq!(status(Method::GET, &[HOST, ("sec-fetch-site", "cross-site")]), None);
        // Another port of this machine is the same site, but it may well be a customer's instance.
        for site in ["cross-site", "same-site", "nonsense"] {
            assert_eq!(status(Method::DELETE, &[HOST, ("sec-fetch-site", site)]), Some(403), "{site}");
        }
        for origin in ["null", "http://evil.example", "http://127.0.0.1:8081", "https://127.0.0.1:8080"] {
            assert_eq!(status(Method::POST, &[HOST, ("origin", origin)]), Some(403), "{origin}");
        }
    }

    #[test]
    fn foreign_names_are_not_answered() {
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:1", "[::1]:8080", "[::1]"] {
            assert_eq!(status(Method::GET, &[("host", host)]), None, "{host}");
        }
        for host in ["evil.example", "evil.example:8080", "10.0.0.1:8080", "127.0.0.1.evil.example", ""] {
            assert_eq!(status(Method::GET, &[("host", host)]), Some(421), "{host}");
        }
    }
}
