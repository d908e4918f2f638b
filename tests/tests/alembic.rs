//! A change that is begun inside the transaction of a migration tool: Alembic, as people use it.

use migrator_tests::left_behind::nothing_left_behind;
use migrator_tests::program::{AlembicProject, python};
use migrator_tests::*;

for_oldest_and_newest_server!(a_change_begun_by_a_migration, a_migration_that_fails_takes_the_change_back);

const BEGIN: &str = r#"
revision, down_revision = "0001", None
from alembic import op

def upgrade():
    op.execute("create table jobs (id int primary key, v text)")
    op.execute("insert into jobs select g, 'job ' || g from generate_series(1, 5000) g")

def downgrade():
    op.execute("drop table jobs")
"#;

const CHANGE: &str = r#"
revision, down_revision = "0002", "0001"
from alembic import op

def upgrade():
    op.execute("create table beside (id int)")
    op.execute("select migrator.create_shadow('public.jobs', 'alter column id type bigint, add column more text', on_ready => 'swap')")
    FAILS

def downgrade():
    op.execute("drop table beside")
"#;

const NEEDS: &str = r#"
revision, down_revision = "0003", "0002"
from alembic import op

def upgrade():
    op.execute("select migrator.ensure_changed('public.jobs', wait => '2 minutes')")
    op.execute("insert into jobs (id, v, more) values (3000000000, 'long', 'more')")

def downgrade():
    op.execute("delete from jobs where id = 3000000000")
"#;

async fn a_change_begun_by_a_migration(server: Server) -> Result<()> {
    let Some(python) = python() else {
        story::skipped(&format!("alembic on {}", server.major), "alembic is not installed");
        return Ok(());
    };
    let database = server.database().await?;
    let session = database.connect().await?;
    let project = AlembicProject::new(&python, &database)?;
    project.migration("a", BEGIN)?;
    project.migration("b", &CHANGE.replace("FAILS", ""))?;
    project.migration("c", NEEDS)?;
    project.run(&["upgrade", "0002"]).await?.fine()?;
    ensure!(session.number("select count(*) from migrator.status").await? == 1, "the migration began no change");

    // Nobody drives it: who needs it is told so, and may try again.
    let early = session.refusal("select migrator.ensure_changed('public.jobs')").await?;
    ensure!(early.code == "55000" && early.hint.is_some(), "{early}");
    let id = session.number("select change from migrator.status").await?;
    let change = Change::of(&database, id);
    let driver = change.keep_going(1);
    project.run(&["upgrade", "head"]).await?.fine()?;
    ensure!(
        session.value("select more from jobs where id = 3000000000").await? == "more",
        "the later migration did not run"
    );
    project.run(&["downgrade", "0002"]).await?.fine()?;
    driver.stop().await?;
    change.finish().await?;
    ensure!(session.number("select count(*) from jobs").await? == 5000, "rows lost");
    nothing_left_behind(&database).await
}

async fn a_migration_that_fails_takes_the_change_back(server: Server) -> Result<()> {
    let Some(python) = python() else {
        story::skipped(&format!("alembic on {}", server.major), "alembic is not installed");
        return Ok(());
    };
    let database = server.database().await?;
    let project = AlembicProject::new(&python, &database)?;
    project.migration("a", BEGIN)?;
    project.migration("b", &CHANGE.replace("FAILS", r#"op.execute("select 1 / 0")"#))?;
    let outcome = project.run(&["upgrade", "head"]).await?;
    ensure!(outcome.code != 0 && outcome.stderr.contains("division by zero"), "the migration should have failed");
    nothing_left_behind(&database).await
}
