/*
 * Memory that is taken from the machine while it runs, as a balloon does it: a process locks page after page, as far as
 * reclaim gives it any. When the kernel has to kill for memory, a balloon goes first, and gives back what it had
 * (VIRTIO_BALLOON_F_DEFLATE_ON_OOM).
 */
#include "guest.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define OUT_OF_PUFF_NS 200000000L /* msleep(200), after a failure */

static struct {
	unsigned long number;
	pid_t pid;
} balloons[MOST_BALLOONS];

static void fill(volatile unsigned long *taken, unsigned long pages)
{
	struct timespec out_of_puff = { .tv_nsec = OUT_OF_PUFF_NS };
	char *memory;

	set_oom_score_adj("1000");
	prctl(PR_SET_NAME, "balloon");
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	while (memory != MAP_FAILED && *taken < pages)
		if (!mlock(memory + *taken * PAGE, PAGE))
			++*taken;
		else
			nanosleep(&out_of_puff, NULL);
	for (;;)
		pause();
}

/* inflate NUMBER PAGES */
const char *inflate(char *arguments)
{
	unsigned long number, pages;
	int i = 0;

	if (sscanf(arguments, "%lu %lu", &number, &pages) != 2)
		return "inflate NUMBER PAGES";
	while (i < MOST_BALLOONS && balloons[i].pid)
		i++;
	if (i == MOST_BALLOONS)
		return "too many balloons";
	progress->taken[i] = 0;
	balloons[i].number = number;
	balloons[i].pid = fork();
	if (!balloons[i].pid)
		fill(&progress->taken[i], pages);
	if (balloons[i].pid > 0)
		return NULL;
	balloons[i].pid = 0;
	return strerror(errno);
}

/* deflate NUMBER: answers how many pages it had, and whether it was killed for memory before. */
const char *deflate(char *arguments)
{
	unsigned long number;
	int killed;

	if (sscanf(arguments, "%lu", &number) != 1)
		return "deflate NUMBER";
	for (int i = 0; i < MOST_BALLOONS; i++) {
		if (!balloons[i].pid || balloons[i].number != number)
			continue;
		killed = waitpid(balloons[i].pid, NULL, WNOHANG) > 0;
		if (!killed)
			kill(balloons[i].pid, SIGKILL);
		balloons[i].pid = 0;
		snprintf(result, sizeof result, "%lu %d", progress->taken[i], killed);
		return NULL;
	}
	return "no such balloon";
}
