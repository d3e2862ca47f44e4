//! The second round trip: what became different, and the commit.

use futures::{FutureExt, future::BoxFuture};
use tokio_postgres::{Client, Error, Statement, types::ToSql};

use super::{
    super::super::{
        CellUsage,
        format::{self, clamp, ms},
    },
    judge::is_last,
    picture::{Instance, Kept, Picture},
    pipeline,
    statements::Statements,
};
use crate::types::{InstanceId, Phase};

/// A statement that is sent when it is polled first. Its answer: a number, where one is asked for.
type Sent<'s> = BoxFuture<'s, Result<Option<i64>, Error>>;
/// Columns of values, owned by the statement that is sent with them.
type Column<'s> = Box<dyn ToSql + Sync + Send + 's>;

/// By what a transaction is found again when its answer is lost.
pub(in super::super) struct Mark<'m> {
    /// The process.
    pub(in super::super) writer: &'m str,
    /// Which of its batches.
    pub(in super::super) batch: i64,
    /// Where others listen.
    pub(in super::super) channel: &'m str,
}

/// What came of the second trip.
pub(in super::super) enum Saved {
    /// The position of the last event before the batch.
    Committed(u64),
    /// The server refused a statement, so that nothing was written.
    Refused(Error),
    /// It is not known: the commit was sent, and how it ended was not told.
    Unknown(Error),
}

/// Writes what became different, tells others, and commits.
pub(in super::super) async fn save(
    client: &Client,
    statements: &Statements,
    picture: &Picture<'_>,
    mark: &Mark<'_>,
) -> Saved {
    let mut writes = Writes { client, sent: Vec::new() };
    writes.instances(statements, picture);
    writes.belongings(statements, picture);
    writes.operations(statements, picture);
    writes.findings(statements, picture);
    writes.events(statements, picture, mark);
    let Writes { mut sent, .. } = writes;
    sent.push(client.batch_execute("COMMIT").map(|done| done.map(|()| None)).boxed());
    let mut answers = pipeline(sent).await;
    let committed = answers.pop().expect("the commit is one of them");
    let position = answers.last().and_then(|last| last.as_ref().ok().copied().flatten());
    // After a statement that failed, the commit is a rollback, and says so in a way that the driver does not pass on.
    match answers.into_iter().find_map(Result::err) {
        Some(error) if error.code().is_some() && !super::super::fault::is_lost(&error) => Saved::Refused(error),
        Some(error) => Saved::Unknown(error),
        None => match (committed, position) {
            (Ok(_), Some(position)) => Saved::Committed(u64::try_from(position).unwrap_or(0)),
            (Ok(_), None) => unreachable!("the last statement before the commit tells the position"),
            (Err(error), _) => Saved::Unknown(error),
        },
    }
}

/// The statements of the second trip, in their order.
struct Writes<'s> {
    client: &'s Client,
    sent: Vec<Sent<'s>>,
}

impl<'s> Writes<'s> {
    /// Adds a statement, unless there is nothing to do.
    fn add(&mut self, statement: &'s Statement, rows: usize, columns: Vec<Column<'s>>) {
        if rows > 0 {
            let client = self.client;
            self.sent.push(
                async move {
                    let values: Vec<&(dyn ToSql + Sync)> = columns.iter().map(|column| &**column as _).collect();
                    client.execute(statement, &values).await.map(|_| None)
                }
                .boxed(),
            );
        }
    }

    /// Adds the statement that tells the position.
    fn add_last(&mut self, statement: &'s Statement, columns: Vec<Column<'s>>) {
        let client = self.client;
        self.sent.push(
            async move {
                let values: Vec<&(dyn ToSql + Sync)> = columns.iter().map(|column| &**column as _).collect();
                client.query_one(statement, &values).await?.try_get(0).map(Some)
            }
            .boxed(),
        );
    }

    fn names(&mut self, statement: &'s Statement, names: Vec<&'s str>) {
        self.add(statement, names.len(), vec![Box::new(names)]);
    }

    fn instances(&mut self, statements: &'s Statements, picture: &'s Picture<'_>) {
        let requests = picture.requests.iter().filter(|(_, kept)| kept.is_deleted());
        let requests: Vec<i64> = requests.map(|(number, _)| clamp(*number)).collect();
        self.add(&statements.delete_requests, requests.len(), vec![Box::new(requests)]);
        let instances = &picture.instances;
        let deleted = instances.iter().filter(|(_, kept)| kept.is_deleted());
        self.names(&statements.delete_instances, deleted.map(|(id, _)| id.as_str()).collect());
        self.instance_rows(&statements.update_instances, instances.iter(), Kept::updated);
        self.instance_rows(&statements.insert_instances, instances.iter(), Kept::inserted);
        if picture.version_used > picture.version_used_before {
            self.add(&statements.use_version, 1, vec![Box::new(clamp(picture.version_used))]);
        }
    }

    fn instance_rows<'p: 's>(
        &mut self,
        statement: &'s Statement,
        instances: impl Iterator<Item = (&'s &'p InstanceId, &'s Kept<Instance<'p>>)>,
        which: impl Fn(&'s Kept<Instance<'p>>) -> Option<&'s Instance<'p>>,
    ) {
        let rows: Vec<_> = instances
            .filter_map(|(_, kept)| which(kept))
            .filter_map(|found| found.row.map(|(row, body)| (found, row, body)))
            .collect();
        let columns: Vec<Column<'s>> = vec![
            Box::new(rows.iter().map(|(_, row, _)| row.id.as_str()).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|(found, ..)| clamp(found.version)).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|(_, row, _)| row.tenant.as_str()).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|(_, row, _)| row.cell.as_str()).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|(_, row, _)| lane(row.lane)).collect::<Vec<i16>>()),
            Box::new(rows.iter().map(|(_, row, _)| ms(row.due_at)).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|(_, row, _)| row.phase.map(Phase::as_str)).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|(_, row, _)| row.parked).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|(found, ..)| found.claimed_by.map(clamp)).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|(found, ..)| found.taken_over).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|(.., body)| *body).collect::<Vec<_>>()),
        ];
        self.add(statement, rows.len(), columns);
    }

    /// What belongs to instances: specs, reservations with their sums, host names.
    fn belongings(&mut self, statements: &'s Statements, picture: &'s Picture<'_>) {
        let (mut dropping, mut kept, mut written) = (Vec::new(), (Vec::new(), Vec::new()), (vec![], vec![], vec![]));
        for (id, specs) in &picture.specs {
            if let Some(generations) = &specs.kept {
                dropping.push(id.as_str());
                // What is written over need not be removed first.
                for generation in generations.iter().chain(specs.written.keys()) {
                    kept.0.push(id.as_str());
                    kept.1.push(*generation);
                }
            }
            for (generation, body) in &specs.written {
                written.0.push(id.as_str());
                written.1.push(*generation);
                written.2.push(*body);
            }
        }
        let columns: Vec<Column<'s>> = vec![Box::new(dropping.clone()), Box::new(kept.0), Box::new(kept.1)];
        self.add(&statements.delete_specs, dropping.len(), columns);
        let columns: Vec<Column<'s>> = vec![Box::new(written.0), Box::new(written.1), Box::new(written.2)];
        self.add(&statements.write_specs, picture.specs.values().map(|specs| specs.written.len()).sum(), columns);

        let reservations = &picture.reservations;
        let deleted = reservations.iter().filter(|(_, kept)| kept.is_deleted());
        self.names(&statements.delete_reservations, deleted.map(|(id, _)| id.as_str()).collect());
        let rows: Vec<_> = reservations
            .iter()
            .filter(|(_, kept)| kept.changed)
            .filter_map(|(id, kept)| Some((id.as_str(), kept.now.as_ref()?)))
            .collect();
        let mut columns: Vec<Column<'s>> = vec![
            Box::new(rows.iter().map(|(id, _)| *id).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|(_, held)| held.cell.as_str()).collect::<Vec<_>>()),
        ];
        columns.extend(sums(rows.iter().map(|(_, held)| &held.usage)).into_iter().skip(1));
        self.add(&statements.write_reservations, rows.len(), columns);
        self.usage(&statements.update_usage, picture, Kept::updated);
        self.usage(&statements.insert_usage, picture, Kept::inserted);

        let names = &picture.host_names;
        let given_back = names.iter().filter(|(_, kept)| kept.stored && kept.changed);
        self.names(&statements.delete_host_names, given_back.map(|(name, _)| name.as_str()).collect());
        let taken = names.iter().filter(|(_, kept)| kept.changed);
        let taken: Vec<_> =
            taken.filter_map(|(name, kept)| Some((name.as_str(), kept.now.as_ref()?.as_str()))).collect();
        let columns: Vec<Column<'s>> = vec![
            Box::new(taken.iter().map(|(name, _)| *name).collect::<Vec<_>>()),
            Box::new(taken.iter().map(|(_, owner)| *owner).collect::<Vec<_>>()),
        ];
        self.add(&statements.insert_host_names, taken.len(), columns);
    }

    fn usage(
        &mut self,
        statement: &'s Statement,
        picture: &'s Picture<'_>,
        which: impl Fn(&'s Kept<CellUsage>) -> Option<&'s CellUsage>,
    ) {
        let rows: Vec<_> =
            picture.usage.iter().filter_map(|(cell, kept)| Some((cell.as_str(), which(kept)?))).collect();
        let mut columns: Vec<Column<'s>> = vec![Box::new(rows.iter().map(|(cell, _)| *cell).collect::<Vec<_>>())];
        columns.extend(sums(rows.iter().map(|(_, usage)| *usage)));
        self.add(statement, rows.len(), columns);
    }

    fn operations(&mut self, statements: &'s Statements, picture: &'s Picture<'_>) {
        let asked = || picture.operations.values();
        // Whoever gives its key up does so before the other takes it.
        let rows: Vec<_> = asked().filter_map(Kept::updated).collect();
        let columns: Vec<Column<'s>> = vec![
            Box::new(rows.iter().map(|asked| asked.operation.id.as_str()).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|asked| asked.operation.key.as_ref().map(|key| key.as_str())).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|asked| asked.operation.state.as_str()).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|asked| ms(asked.operation.ended_at)).collect::<Vec<_>>()),
            Box::new(
                rows.iter().map(|asked| asked.operation.failure.as_ref().map(format::failure)).collect::<Vec<_>>(),
            ),
            Box::new(rows.iter().map(|asked| asked.body).collect::<Vec<_>>()),
        ];
        self.add(&statements.update_operations, rows.len(), columns);
        let rows: Vec<_> = asked().filter_map(Kept::inserted).collect();
        let columns: Vec<Column<'s>> = vec![
            Box::new(rows.iter().map(|asked| asked.operation.id.as_str()).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|asked| asked.operation.instance.as_str()).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|asked| asked.operation.key.as_ref().map(|key| key.as_str())).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|asked| asked.operation.verb.as_str()).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|asked| asked.operation.state.as_str()).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|asked| asked.operation.accepted_at.unix_ms()).collect::<Vec<_>>()),
            Box::new(rows.iter().map(|asked| ms(asked.operation.ended_at)).collect::<Vec<_>>()),
            Box::new(
                rows.iter().map(|asked| asked.operation.failure.as_ref().map(format::failure)).collect::<Vec<_>>(),
            ),
            Box::new(rows.iter().map(|asked| asked.body).collect::<Vec<_>>()),
        ];
        self.add(&statements.insert_operations, rows.len(), columns);
        let ends: Vec<_> = picture.ended.values().collect();
        let columns: Vec<Column<'s>> = vec![
            Box::new(ends.iter().map(|end| end.id.as_str()).collect::<Vec<_>>()),
            Box::new(ends.iter().map(|end| end.state.as_str()).collect::<Vec<_>>()),
            Box::new(ends.iter().map(|end| end.at.unix_ms()).collect::<Vec<_>>()),
            Box::new(ends.iter().map(|end| end.failure.as_ref().map(format::failure)).collect::<Vec<_>>()),
        ];
        self.add(&statements.end_operations, ends.len(), columns);
    }

    /// Makings, data, strangers, cells, the freeze, and sessions that are over.
    fn findings(&mut self, statements: &'s Statements, picture: &'s Picture<'_>) {
        let makings: Vec<_> = picture.incarnations.iter().collect();
        let columns: Vec<Column<'s>> = vec![
            Box::new(makings.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>()),
            Box::new(makings.iter().map(|(_, row)| row.instance.as_str()).collect::<Vec<_>>()),
            Box::new(makings.iter().map(|(_, row)| row.tenant.as_str()).collect::<Vec<_>>()),
            Box::new(makings.iter().map(|(_, row)| row.cell.as_str()).collect::<Vec<_>>()),
            Box::new(makings.iter().map(|(_, row)| row.data.as_str()).collect::<Vec<_>>()),
            Box::new(makings.iter().map(|(_, row)| format::incarnation_state(row.state)).collect::<Vec<_>>()),
            Box::new(makings.iter().map(|(_, row)| ms(row.ended_at)).collect::<Vec<_>>()),
            Box::new(makings.iter().map(|(_, row)| ms(row.due_at)).collect::<Vec<_>>()),
        ];
        self.add(&statements.write_incarnations, makings.len(), columns);
        let deleted = picture.data.iter().filter(|(_, kept)| kept.is_deleted());
        self.names(&statements.delete_data, deleted.map(|(id, _)| id.as_str()).collect());
        let data = picture.data.values().filter(|kept| kept.changed);
        let data: Vec<_> = data.filter_map(|kept| kept.now.as_ref()).collect();
        let columns: Vec<Column<'s>> = vec![
            Box::new(data.iter().map(|row| row.id.as_str()).collect::<Vec<_>>()),
            Box::new(data.iter().map(|row| row.tenant.as_str()).collect::<Vec<_>>()),
            Box::new(data.iter().map(|row| row.instance.as_str()).collect::<Vec<_>>()),
            Box::new(data.iter().map(|row| row.cell.as_str()).collect::<Vec<_>>()),
            Box::new(data.iter().map(|row| format::data_state(row.state)).collect::<Vec<_>>()),
            Box::new(data.iter().map(|row| row.since.unix_ms()).collect::<Vec<_>>()),
        ];
        self.add(&statements.write_data, data.len(), columns);
        let gone = picture.strangers.iter().filter(|(_, found)| found.is_none());
        let gone: Vec<String> = gone.map(|(incarnation, _)| incarnation.to_string()).collect();
        self.add(&statements.delete_strangers, gone.len(), vec![Box::new(gone)]);
        let found: Vec<_> = picture.strangers.values().filter_map(Option::as_ref).collect();
        let columns: Vec<Column<'s>> = vec![
            Box::new(found.iter().map(|row| row.incarnation.to_string()).collect::<Vec<_>>()),
            Box::new(found.iter().map(|row| row.instance.as_str()).collect::<Vec<_>>()),
            Box::new(found.iter().map(|row| row.cell.as_str()).collect::<Vec<_>>()),
            Box::new(found.iter().map(|row| row.data.as_ref().map(|data| data.as_str())).collect::<Vec<_>>()),
            Box::new(found.iter().map(|row| clamp(row.generation.0)).collect::<Vec<_>>()),
            Box::new(found.iter().map(|row| row.found_at.unix_ms()).collect::<Vec<_>>()),
        ];
        self.add(&statements.write_strangers, found.len(), columns);
        let cells: Vec<_> = picture.cells.values().collect();
        let columns: Vec<Column<'s>> = vec![
            Box::new(cells.iter().map(|row| row.name.as_str()).collect::<Vec<_>>()),
            Box::new(cells.iter().map(|row| row.identity.as_deref()).collect::<Vec<_>>()),
            Box::new(cells.iter().map(|row| row.drift_frozen.as_deref()).collect::<Vec<_>>()),
        ];
        self.add(&statements.write_cells, cells.len(), columns);
        if let Some(frozen) = picture.frozen {
            self.add(&statements.freeze, 1, vec![Box::new(frozen)]);
        }
        let ended: Vec<i64> = picture.ended_sessions.iter().copied().map(clamp).collect();
        self.add(&statements.end_sessions, ended.len(), vec![Box::new(ended)]);
    }

    /// What others are told, and the events, or where there are none the mark alone.
    fn events(&mut self, statements: &'s Statements, picture: &'s Picture<'_>, mark: &'s Mark<'_>) {
        let notices = picture.outbox.notices();
        self.add(&statements.tell, notices.len(), vec![Box::new(mark.channel), Box::new(notices)]);
        let marked: Vec<Column<'s>> = vec![Box::new(mark.writer), Box::new(mark.batch)];
        if picture.events == 0 {
            return self.add_last(&statements.mark, marked);
        }
        let events: Vec<_> =
            picture.taken.iter().flat_map(|prepared| prepared.change.events.iter().zip(&prepared.events)).collect();
        let mut columns = marked;
        columns.push(Box::new(clamp(picture.events)));
        let instances = events.iter().map(|(event, _)| event.instance.as_ref().map(InstanceId::as_str));
        columns.push(Box::new(instances.collect::<Vec<_>>()));
        columns.push(Box::new(events.iter().map(|(event, _)| event.at.unix_ms()).collect::<Vec<_>>()));
        columns.push(Box::new(events.iter().map(|(event, _)| is_last(&event.what)).collect::<Vec<_>>()));
        columns.push(Box::new(events.iter().map(|(_, body)| body.as_str()).collect::<Vec<_>>()));
        columns.push(Box::new(mark.channel));
        self.add_last(&statements.write_events, columns);
    }
}

fn lane(lane: super::super::super::Lane) -> i16 {
    i16::try_from(format::lane(lane)).expect("there are two")
}

/// The columns of usage, behind the first of which reservations have none.
fn sums<'s, 'u>(rows: impl Iterator<Item = &'u CellUsage> + Clone) -> Vec<Column<'s>> {
    let column = |part: fn(&CellUsage) -> u64| -> Column<'s> {
        Box::new(rows.clone().map(|usage| clamp(part(usage))).collect::<Vec<i64>>())
    };
    vec![
        column(|usage| usage.instances),
        column(|usage| usage.cpu_millis),
        column(|usage| usage.memory_mib),
        column(|usage| usage.data_mib),
    ]
}
