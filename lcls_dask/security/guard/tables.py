"""Which role may use which operation of which Dask server: all of them; what is not here is refused.

`test_guard_tables` compares this with the distributed that is installed, so a new operation is seen before it is used.
"""

from collections.abc import Mapping
from typing import Final

from ..peer import Role

Table = Mapping[str, frozenset[Role]]

_USER, _WORKER, _MANAGER, _SCHEDULER = Role.USER, Role.WORKER, Role.MANAGER, Role.SCHEDULER


def _table(groups: Mapping[tuple[Role, ...], str]) -> Table:
    return {operation: frozenset(roles) for roles, operations in groups.items() for operation in operations.split()}


#: Requests to a scheduler.
SCHEDULER: Final = _table(
    {
        # what ordinary work needs, from a notebook or from a task by `get_client`
        (_USER, _WORKER, _MANAGER): """
            register-client scatter gather retry rebalance replicate
            identity echo versions ncores ncores_running has_what who_has processing call_stack nbytes
            get_metadata set_metadata get_task_status get_task_stream get_task_stream_index get_task_prefix_states
            start_task_metadata stop_task_metadata profile performance_report get_story get_runspec get_error_cause
            events log_event logs get_logs worker_logs set_restrictions update_data proxy broadcast
            event_clear event_is_set event_set event_wait
            multi_lock_acquire multi_lock_release
            publish_delete publish_get publish_list publish_put
            queue_create queue_get queue_put queue_qsize
            semaphore_acquire semaphore_close semaphore_refresh_leases semaphore_register semaphore_release
            semaphore_value
            variable_get variable_set
        """,
        # what a person asks, but no task
        (_USER, _MANAGER): """
            amm_handler memory_sampler_start memory_sampler_stop get_cluster_state dump_state benchmark_hardware
            adaptive_target check_idle dashboard_ticket
        """,
        # a worker's and its nanny's own business; `dispatch` looks whether it is their own
        (_WORKER,): """
            register-worker register_nanny heartbeat_worker set_resources add_keys
            shuffle_barrier shuffle_get shuffle_get_or_create shuffle_restrict_task
        """,
        (_WORKER, _MANAGER): "unregister retire_workers",
        # what changes the cluster, or runs code in its processes beside the tasks
        (_MANAGER,): """
            feed run_function restart restart_workers terminate subscribe_worker_status workers_to_close
            register_scheduler_plugin unregister_scheduler_plugin register_worker_plugin unregister_worker_plugin
            register_nanny_plugin unregister_nanny_plugin dump_cluster_state_to_url
        """,
        # a stream without a client or worker that it belongs to
        (): "connection_stream",
    }
)

#: What a person or a task may have the scheduler pass on to workers, in `broadcast` and `proxy`.
PASSED_ON: Final = frozenset({"versions", "get_story", "identity", "keys", "actor_execute", "actor_attribute"})

#: Requests to a worker.
WORKER: Final = _table(
    {
        (_SCHEDULER, _WORKER): """
            identity echo ping versions get_data update_data actor_attribute actor_execute
            shuffle_inputs_done shuffle_receive benchmark_network
        """,
        (_SCHEDULER,): """
            gather free_keys keys terminate run run_coroutine upload_file plugin-add plugin-remove
            call_stack profile profile_metadata get_logs get_monitor_info get_story dump_state
            benchmark_disk benchmark_memory
        """,
        (): "connection_stream",
    }
)

#: Requests to a nanny; its worker has the same role.
NANNY: Final = _table(
    {
        (_SCHEDULER, _WORKER): "identity echo close_gracefully",
        (_SCHEDULER,): "dump_state get_logs instantiate kill restart run terminate plugin_add plugin_remove",
        (): "connection_stream",
    }
)

#: Messages in the stream of a client to the scheduler, whoever the client is.
CLIENT_STREAM: Final = frozenset(
    """
    update-graph update-data client-desires-keys client-releases-keys report-key cancel-keys
    heartbeat-client close-client subscribe-topic unsubscribe-topic
    publish_flush_batched_send queue-future-release queue_release variable-future-received-confirm variable_delete
    """.split()
)

#: Messages in the stream of a worker to the scheduler.
WORKER_STREAM: Final = frozenset(
    """
    task-finished task-erred release-worker-data add-keys long-running reschedule keep-alive log-event
    worker-status-change request-refresh-who-has steal-response
    """.split()
)

#: Messages in the stream of the scheduler to a worker.
SCHEDULER_STREAM: Final = frozenset(
    """
    close cancel-compute acquire-replicas compute-task free-keys remove-replicas steal-request refresh-who-has
    worker-status-change remove-worker shuffle-fail
    """.split()
)
