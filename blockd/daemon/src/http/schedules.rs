//! Schedules, their policies and their runs.

use super::routes::Routes;
use blockd_api::operations;

pub(super) fn routes() -> Routes {
    Routes::default()
        .on(operations::LIST_SCHEDULES, async |call| call.engine.schedules.list_schedules(false).await)
        .on(operations::LIST_DRILL_SCHEDULES, async |call| call.engine.schedules.list_schedules(true).await)
        .detached(operations::CREATE_SCHEDULE, async |call| {
            call.engine.schedules.create_schedule(call.input).await
        })
        .on(operations::GET_SCHEDULE, async |call| call.engine.schedules.schedule(call.path).await)
        .detached(operations::UPDATE_SCHEDULE, async |call| {
            call.engine.schedules.update_schedule(call.path, call.input).await
        })
        .detached(operations::DELETE_SCHEDULE, async |call| {
            call.engine.schedules.delete_schedule(call.path).await
        })
        .detached(operations::RUN_SCHEDULE, async |call| {
            call.engine.schedules.run_schedule(call.path, call.input).await
        })
        .on(operations::PLAN_RETENTION, async |call| call.engine.schedules.plan_retention(call.path).await)
        .on(operations::LIST_RUNS, async |call| call.engine.schedules.list_runs(call.input).await)
        .on(operations::LIST_POLICIES, async |call| call.engine.schedules.list_policies().await)
        .detached(operations::CREATE_POLICY, async |call| {
            call.engine.schedules.create_policy(call.input).await
        })
        .on(operations::GET_POLICY, async |call| call.engine.schedules.policy(call.path).await)
        .detached(operations::UPDATE_POLICY, async |call| {
            call.engine.schedules.update_policy(call.path, call.input).await
        })
        .detached(operations::DELETE_POLICY, async |call| {
            call.engine.schedules.delete_policy(call.path).await
        })
}
