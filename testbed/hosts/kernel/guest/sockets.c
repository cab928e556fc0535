/* Unrelated sockets and who reads them: at once, after faulting in pages of its own, or nobody. */
#include "guest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define WORKING_SET_PAGES 64
#define PAGES_PER_READ 4
#define DATAGRAMS_AT_ONCE 64

static struct {
	int fd, port;
	pid_t reader;
} sockets[MOST_SOCKETS];

static int take(int fd, volatile unsigned long *received, int most)
{
	char byte;
	int count = 0;

	while (count < most && recv(fd, &byte, 1, MSG_DONTWAIT) >= 0)
		count++;
	*received += count;
	return count;
}

static void read_promptly(int fd, volatile unsigned long *received)
{
	struct pollfd ready = { .fd = fd, .events = POLLIN };

	stay("prompt");
	for (;;)
		if (poll(&ready, 1, -1) > 0)
			take(fd, received, DATAGRAMS_AT_ONCE);
}

static void read_after_faulting(int fd, volatile unsigned long *received)
{
	struct pollfd ready = { .fd = fd, .events = POLLIN };
	char *pages;
	unsigned position = 0;

	work_as("faulting");
	pages = mmap(NULL, WORKING_SET_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	while (pages != MAP_FAILED) {
		if (poll(&ready, 1, -1) <= 0)
			continue;
		for (int i = 0; i < PAGES_PER_READ; i++)
			*(volatile char *)(pages + position++ % WORKING_SET_PAGES * PAGE) = 'r';
		take(fd, received, DATAGRAMS_AT_ONCE);
	}
	_exit(1);
}

/* socket READER PORT BUFFER: the kernel doubles what it is asked for. */
const char *open_socket(char *arguments)
{
	struct sockaddr_in here = { .sin_family = AF_INET };
	unsigned long number = progress->sockets;
	int fd, port, buffer;
	char reader[16];

	if (sscanf(arguments, "%15s %d %d", reader, &port, &buffer) != 3)
		return "socket READER PORT BUFFER";
	if (number == MOST_SOCKETS)
		return "too many sockets";
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	here.sin_port = htons(port);
	buffer /= 2;
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer) ||
	    bind(fd, (struct sockaddr *)&here, sizeof here))
		return reason("port %d: %s", port, strerror(errno));
	sockets[number].fd = fd;
	sockets[number].port = port;
	progress->sockets++;
	if (!strcmp(reader, "never") || (sockets[number].reader = fork()))
		return NULL;
	if (!strcmp(reader, "prompt"))
		read_promptly(fd, &progress->received[number]);
	read_after_faulting(fd, &progress->received[number]);
	_exit(1);
}

/* drain: count what is left in all of them. */
const char *drain_sockets(char *arguments)
{
	(void)arguments;
	for (unsigned long i = 0; i < progress->sockets; i++)
		take(sockets[i].fd, &progress->received[i], 1 << 30);
	return NULL;
}

static const char *signal_reader(const char *arguments, int number)
{
	int port = atoi(arguments);

	for (unsigned long i = 0; i < progress->sockets; i++)
		if (sockets[i].port == port && sockets[i].reader > 0 && !kill(sockets[i].reader, number))
			return NULL;
	return reason("nobody reads from port %d", port);
}

/* stop_reading PORT: whoever reads from it is stopped, in the midst of whatever it does. */
const char *stop_reading(char *arguments)
{
	return signal_reader(arguments, SIGSTOP);
}

/* read_again PORT */
const char *read_again(char *arguments)
{
	return signal_reader(arguments, SIGCONT);
}
