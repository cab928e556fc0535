/*
 * The series' own workload: tasks map anonymous memory, write every page, then read it all in order, over and over.
 * Each page is filled with a stamp of its own, and every read compares the whole page. Tasks take turns after a few
 * touches, so that none runs far ahead. The guest's ticks tell no user time: some touches are timed.
 */
#include "guest.h"

#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct stamp {
	uint32_t task, page;
	uint64_t seed;
};

struct work {
	unsigned long tasks, pages;
	unsigned passes, turn;
	uint64_t seed;
};

#define STAMPS (PAGE / sizeof(struct stamp))
#define TIMED 64 /* one touch in so many is */

static void fill(struct stamp *at, struct stamp stamp)
{
	for (size_t i = 0; i < STAMPS; i++)
		at[i] = stamp;
}

static int differs(const struct stamp *at, struct stamp stamp)
{
	for (size_t i = 0; i < STAMPS; i++)
		if (memcmp(&at[i], &stamp, sizeof stamp))
			return 1;
	return 0;
}

static unsigned long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000UL + now.tv_nsec;
}

/* A touch of a page that is there takes so long, if nothing comes between: less what looking at the clock takes. */
static void time_touch(volatile unsigned long *least_ns, unsigned long start)
{
	unsigned long end = now_ns(), clock = now_ns() - end, took = end - start;

	took = took > clock ? took - clock : 0;
	if (!*least_ns || took < *least_ns)
		*least_ns = took;
}

/* Write the page, or tell whether it is as it was written. */
static int touch(struct task *task, struct stamp *at, struct stamp stamp, int writing)
{
	int timed = !(stamp.page % TIMED), wrong = 0;
	unsigned long start = 0;

	task->touching = 1;
	if (timed) {
		*(volatile char *)at = *(volatile char *)at;
		start = now_ns();
	}
	if (writing)
		fill(at, stamp);
	else
		wrong = differs(at, stamp);
	if (timed)
		time_touch(writing ? &progress->write_ns : &progress->read_ns, start);
	task->touching = 0;
	task->touches++;
	return wrong;
}

/* A gate that is a pipe: it opens when nobody can write to it any more, which is when all tasks are there. */
static void pass_gate(const int *gate)
{
	char none;

	close(gate[1]);
	while (read(gate[0], &none, 1) < 0 && errno == EINTR)
		;
	close(gate[0]);
}

static void run_task(struct task *task, unsigned number, const struct work *work, const int *gate)
{
	unsigned long pages = work->pages / work->tasks + (number < work->pages % work->tasks);
	struct stamp *memory, stamp = { .task = number, .seed = work->seed };

	work_as("touch");
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		_exit(1);
	pass_gate(gate);
	for (unsigned pass = 0; pass <= work->passes; pass++)
		for (stamp.page = 0; stamp.page < pages; stamp.page++) {
			if (!(stamp.page % work->turn))
				sched_yield();
			if (touch(task, memory + stamp.page * STAMPS, stamp, !pass)) {
				task->corrupt++;
				event("corrupt_page", "%u %u", number, stamp.page);
			}
			task->checked += pass > 0;
		}
	_exit(0);
}

/* Wait for all of them; a task that was killed in the middle of a touch is not touching any more. */
static void watch(unsigned long tasks, const pid_t *pids)
{
	int status;
	pid_t pid;

	while (progress->finished + progress->killed < tasks && (pid = wait(&status)) > 0) {
		unsigned long i = 0;

		while (i < tasks && pids[i] != pid)
			i++;
		progress->task[i].touching = 0;
		if (WIFEXITED(status) && !WEXITSTATUS(status)) {
			progress->finished++;
			continue;
		}
		progress->killed++;
		event("task_killed", "%lu %d", i, WIFSIGNALED(status) ? WTERMSIG(status) : 0);
	}
	event("workload_ended", "%lu %lu", progress->finished, progress->killed);
	_exit(0);
}

/* workload TASKS PAGES PASSES TURN SEED: TURN touches at a turn. */
const char *start_workload(char *arguments)
{
	static pid_t pids[MOST_TASKS];
	struct work work;
	int gate[2];

	if (sscanf(arguments, "%lu %lu %u %u %lu", &work.tasks, &work.pages, &work.passes, &work.turn, &work.seed) != 5 ||
	    work.tasks > MOST_TASKS)
		return "workload TASKS PAGES PASSES TURN SEED";
	progress->tasks = work.tasks;
	if (fork())
		return NULL;
	stay("workload");
	if (pipe(gate))
		_exit(1);
	for (unsigned long i = 0; i < work.tasks; i++)
		if (!(pids[i] = fork()))
			run_task(&progress->task[i], i, &work, gate);
	close(gate[1]);
	watch(work.tasks, pids);
	_exit(1);
}
