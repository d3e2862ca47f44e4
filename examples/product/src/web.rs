//! The pages over HTTP: forms for people, JSON for programs.

use std::sync::Arc;

use axum::{
    Form, Json, Router,
    extract::{DefaultBodyLimit, Path, Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::json;

use crate::{
    config::{Config, Fault},
    html,
    notebook::{Draft, Edit, Notebook, Page, TEXT_MAX},
};

/// How many pages a list shows.
const LISTED_MAX: u32 = 500;
/// A text of the greatest length, each byte of it percent-encoded, and something to spare.
const BODY_MAX: usize = 3 * TEXT_MAX + 16 * 1024;

/// What the handlers share.
#[derive(Debug)]
pub(crate) struct App {
    /// What the environment says.
    pub(crate) config: Config,
    /// The pages.
    pub(crate) notebook: Notebook,
}

/// Every route.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(list))
        .route("/healthz", get(health))
        .route("/style.css", get(|| async { ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], html::STYLE) }))
        .route("/pages", post(create))
        .route("/pages/new", get(new))
        .route("/pages/{id}", get(show).post(edit))
        .route("/pages/{id}/edit", get(edit_form))
        .route("/pages/{id}/delete", post(delete))
        .route("/api/pages", get(api_list).post(api_create))
        .fallback(async |State(app): State<Arc<App>>| missing(&app))
        .with_state(app)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn(guard))
}

/// Refuses what another web site makes a browser send, and tells browsers to load nothing from elsewhere.
async fn guard(request: Request, next: Next) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let site = request.headers().get("sec-fetch-site").and_then(|site| site.to_str().ok());
    if changes && !matches!(site, None | Some("same-origin" | "none")) {
        return (StatusCode::FORBIDDEN, "This request came from another web site.").into_response();
    }
    let mut response = next.run(request).await;
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Why a request was not served.
enum Failure {
    /// The notebook's file did.
    Notebook(rusqlite::Error),
    /// The work never ended.
    Lost(tokio::task::JoinError),
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Notebook(error) => eprintln!("product: the notebook failed: {error}"),
            Self::Lost(error) => eprintln!("product: a request was lost: {error}"),
        }
        (StatusCode::INTERNAL_SERVER_ERROR, "The notebook cannot be reached at the moment.").into_response()
    }
}

/// Does the notebook's work where it may block.
async fn with<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&Notebook) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let app = Arc::clone(app);
    let done = tokio::task::spawn_blocking(move || work(&app.notebook)).await;
    done.map_err(Failure::Lost)?.map_err(Failure::Notebook)
}

async fn health(State(app): State<Arc<App>>) -> Response {
    if app.config.fault == Some(Fault::Unhealthy) {
        return (StatusCode::SERVICE_UNAVAILABLE, "unwell, as PRODUCT_FAULT=unhealthy asks").into_response();
    }
    match with(&app, Notebook::check).await {
        Ok(()) => "ok".into_response(),
        Err(failure) => failure.into_response(),
    }
}

async fn list(State(app): State<Arc<App>>) -> Result<Response, Failure> {
    let pages = with(&app, |notebook| notebook.pages(LISTED_MAX)).await?;
    Ok(page(&html::list(&app.config, &pages)))
}

async fn new(State(app): State<Arc<App>>) -> Response {
    page(&html::form(&app.config, None, &Draft { title: String::new(), text: String::new() }, None))
}

async fn show(State(app): State<Arc<App>>, Path(id): Path<i64>) -> Result<Response, Failure> {
    Ok(match with(&app, move |notebook| notebook.page(id)).await? {
        Some(found) => page(&html::show(&app.config, &found)),
        None => missing(&app),
    })
}

async fn edit_form(State(app): State<Arc<App>>, Path(id): Path<i64>) -> Result<Response, Failure> {
    Ok(match with(&app, move |notebook| notebook.page(id)).await? {
        Some(found) => {
            let draft = Draft { title: found.title.clone(), text: found.text.clone() };
            page(&html::form(&app.config, Some(&found), &draft, None))
        }
        None => missing(&app),
    })
}

async fn create(State(app): State<Arc<App>>, Form(draft): Form<Draft>) -> Result<Response, Failure> {
    match draft.clone().checked() {
        Ok(draft) => {
            let written = with(&app, move |notebook| notebook.create(&draft)).await?;
            Ok(Redirect::to(&format!("/pages/{}", written.id)).into_response())
        }
        Err(problem) => Ok(refused(&app, StatusCode::UNPROCESSABLE_ENTITY, None, &draft, problem)),
    }
}

/// An edit, and the revision it is based on.
#[derive(Debug, Deserialize)]
struct EditForm {
    title: String,
    text: String,
    revision: i64,
}

async fn edit(
    State(app): State<Arc<App>>,
    Path(id): Path<i64>,
    Form(form): Form<EditForm>,
) -> Result<Response, Failure> {
    let draft = Draft { title: form.title, text: form.text };
    let checked = match draft.clone().checked() {
        Ok(checked) => checked,
        Err(problem) => {
            let current = with(&app, move |notebook| notebook.page(id)).await?;
            let current = current.map(|page| Page { revision: form.revision, ..page });
            return Ok(refused(&app, StatusCode::UNPROCESSABLE_ENTITY, current.as_ref(), &draft, problem));
        }
    };
    Ok(match with(&app, move |notebook| notebook.edit(id, form.revision, &checked)).await? {
        Edit::Written(written) => Redirect::to(&format!("/pages/{}", written.id)).into_response(),
        Edit::Overtaken(current) => {
            let problem = "Somebody else saved this page while you were writing. Below is your text, and theirs \
                           underneath. Saving again replaces theirs.";
            refused(&app, StatusCode::CONFLICT, Some(&current), &draft, problem)
        }
        Edit::Missing => missing(&app),
    })
}

async fn delete(State(app): State<Arc<App>>, Path(id): Path<i64>) -> Result<Response, Failure> {
    // Gone already is as good as gone now.
    with(&app, move |notebook| notebook.delete(id)).await?;
    Ok(Redirect::to("/").into_response())
}

async fn api_list(State(app): State<Arc<App>>) -> Result<Response, Failure> {
    Ok(Json(with(&app, |notebook| notebook.pages(LISTED_MAX)).await?).into_response())
}

async fn api_create(State(app): State<Arc<App>>, Json(draft): Json<Draft>) -> Result<Response, Failure> {
    match draft.checked() {
        Ok(draft) => {
            let written = with(&app, move |notebook| notebook.create(&draft)).await?;
            Ok((StatusCode::CREATED, Json(written)).into_response())
        }
        Err(problem) => Ok((StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "error": problem }))).into_response()),
    }
}

fn page(markup: &maud::Markup) -> Response {
    Html(markup.0.clone()).into_response()
}

fn missing(app: &App) -> Response {
    (StatusCode::NOT_FOUND, page(&html::missing(&app.config))).into_response()
}

fn refused(app: &App, status: StatusCode, current: Option<&Page>, draft: &Draft, problem: &str) -> Response {
    (status, page(&html::form(&app.config, current, draft, Some(problem)))).into_response()
}
