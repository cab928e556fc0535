/*
 * The swap area: an NBD connection of our own making, handed to the kernel's driver; mkswap; swapon. The process that
 * made the connection makes another when it dies, and tries for as long as the device is there.
 */
#define _GNU_SOURCE
#include "guest.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/swap.h>
#include <time.h>
#include <unistd.h>

#define DEVICE "/dev/nbd0"
#define NBD_FLAG_FIXED_NEWSTYLE 1
#define NBD_FLAG_NO_ZEROES 2
#define NBD_OPT_EXPORT_NAME 1
#define PATIENCE_S 5
#define RETRY_MS 100
#define RETRY_MOST_MS 2000

static const uint64_t IHAVEOPT = 0x49484156454f5054ULL;

struct area {
	char address[32], export[256];
	int port, rcvbuf, sndbuf;
	struct device device;
};

static pid_t connector;

static int all(int fd, void *data, size_t length, int writing)
{
	for (char *at = data; length;) {
		ssize_t n = writing ? write(fd, at, length) : read(fd, at, length);

		if (n <= 0)
			return -1;
		at += n;
		length -= n;
	}
	return 0;
}

/* Fixed newstyle, NBD_OPT_EXPORT_NAME. */
static const char *negotiate(int fd, const char *export, uint64_t *size, uint16_t *flags)
{
	struct __attribute__((packed)) { uint64_t magic, option; uint16_t flags; } greeting;
	struct __attribute__((packed)) { uint32_t flags; uint64_t magic; uint32_t option, length; } choice;
	struct __attribute__((packed)) { uint64_t size; uint16_t flags; } answer;
	char zeroes[124];
	int no_zeroes;

	if (all(fd, &greeting, sizeof greeting, 0) || be64toh(greeting.option) != IHAVEOPT)
		return "the server does not speak the newstyle negotiation";
	no_zeroes = be16toh(greeting.flags) & NBD_FLAG_NO_ZEROES;
	choice.flags = htobe32(NBD_FLAG_FIXED_NEWSTYLE | no_zeroes);
	choice.magic = htobe64(IHAVEOPT);
	choice.option = htobe32(NBD_OPT_EXPORT_NAME);
	choice.length = htobe32(strlen(export));
	if (all(fd, &choice, sizeof choice, 1) || all(fd, (void *)export, strlen(export), 1) ||
	    all(fd, &answer, sizeof answer, 0) || (!no_zeroes && all(fd, zeroes, sizeof zeroes, 0)))
		return "the server does not have this export";
	*size = be64toh(answer.size);
	*flags = be16toh(answer.flags);
	return NULL;
}

/* Whoever does not answer in time is given up, until the driver has the socket, which has timeouts of its own. */
static void be_patient(int fd, int seconds)
{
	struct timeval patience = { .tv_sec = seconds };

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
}

static const char *connect_to(const struct area *area, int *fd)
{
	struct sockaddr_in server = { .sin_family = AF_INET, .sin_port = htons(area->port) };
	int one = 1;

	inet_pton(AF_INET, area->address, &server.sin_addr);
	*fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (area->rcvbuf)
		setsockopt(*fd, SOL_SOCKET, SO_RCVBUFFORCE, &(int){ area->rcvbuf / 2 }, sizeof(int));
	if (area->sndbuf)
		setsockopt(*fd, SOL_SOCKET, SO_SNDBUFFORCE, &(int){ area->sndbuf / 2 }, sizeof(int));
	setsockopt(*fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	be_patient(*fd, PATIENCE_S);
	if (connect(*fd, (struct sockaddr *)&server, sizeof server))
		return reason("cannot connect to the swap server: %s", strerror(errno));
	return NULL;
}

/* A connection that is ready to be handed to the driver, and what the server says of its export. */
static const char *open_connection(const struct area *area, int *fd, uint64_t *size, uint16_t *flags)
{
	const char *failure = connect_to(area, fd);

	if (!failure)
		failure = negotiate(*fd, area->export, size, flags);
	if (!failure && *size < area->device.bytes)
		failure = reason("the export has %lu bytes, the swap area needs %lu", (unsigned long)*size,
				 area->device.bytes);
	be_patient(*fd, 0);
	return failure;
}

static unsigned long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000UL + now.tv_nsec / 1000000;
}

/* The driver has let go of the connection, or the server has: make another. */
static int replace_connection(const struct area *area, int fd)
{
	unsigned long began = now_ms(), wait = RETRY_MS, attempts = 1;
	uint64_t size;
	uint16_t flags;

	close(fd);
	event("nbd_connection_lost", "0");
	while (open_connection(area, &fd, &size, &flags) || nbd_replace(fd)) {
		close(fd);
		usleep(wait * 1000);
		wait = 2 * wait < RETRY_MOST_MS ? 2 * wait : RETRY_MOST_MS;
		attempts++;
	}
	event("nbd_reconnected", "%lu %lu", attempts, now_ms() - began);
	return fd;
}

/*
 * In a process of its own: hands a connection to the driver, and another when that has died, if requests wait for one.
 */
static const char *serve(struct area *area, int said)
{
	struct pollfd connection = { .events = POLLRDHUP };
	uint64_t size;
	uint16_t flags;
	int error;
	const char *failure = open_connection(area, &connection.fd, &size, &flags);

	if (failure)
		return failure;
	area->device.bytes = size / PAGE * PAGE;
	area->device.flags = flags;
	if ((error = nbd_connect(&area->device, connection.fd)))
		return reason("the nbd driver refused: %s", strerror(-error));
	close(said);
	while (!area->device.dead_conn_timeout)
		pause();
	for (;;)
		if (poll(&connection, 1, -1) > 0)
			connection.fd = replace_connection(area, connection.fd);
}

static int connected(void)
{
	for (int tries = 0; tries < 500; tries++) {
		if (!access("/sys/block/nbd0/pid", F_OK))
			return 1;
		usleep(10000);
	}
	return 0;
}

/* Page 0 of a swap area (union swap_header, version 1). */
static int mkswap(unsigned long bytes)
{
	static char page[PAGE] __attribute__((aligned(PAGE)));
	uint32_t info[3] = { 1, bytes / PAGE - 1, 0 };
	int fd = open(DEVICE, O_RDWR | O_DIRECT | O_CLOEXEC), failed;

	if (fd < 0)
		return -1;
	memcpy(page + 1024, info, sizeof info);
	memcpy(page + PAGE - 10, "SWAPSPACE2", 10);
	failed = pwrite(fd, page, PAGE, 0) != PAGE;
	close(fd);
	return failed ? -1 : 0;
}

/* swap ADDRESS PORT BYTES RCVBUF SNDBUF TIMEOUT DEAD_CONN_TIMEOUT [EXPORT] */
const char *connect_swap(char *arguments)
{
	struct area area = { .export = "" };
	static char said[256];
	int answer[2];

	if (sscanf(arguments, "%31s %d %lu %d %d %lu %lu %255s", area.address, &area.port, &area.device.bytes,
		   &area.rcvbuf, &area.sndbuf, &area.device.timeout, &area.device.dead_conn_timeout, area.export) < 7)
		return "swap ADDRESS PORT BYTES RCVBUF SNDBUF TIMEOUT DEAD_CONN_TIMEOUT [EXPORT]";
	if (pipe(answer))
		return strerror(errno);
	if (!(connector = fork())) {
		const char *failure;

		close(answer[0]);
		stay("nbd");
		failure = serve(&area, answer[1]);
		_exit(write(answer[1], failure, strlen(failure)) < 0);
	}
	close(answer[1]);
	memset(said, 0, sizeof said);
	if (read(answer[0], said, sizeof said - 1) > 0)
		return said;
	close(answer[0]);
	if (!connected())
		return "the nbd driver did not start";
	if (mkswap(area.device.bytes))
		return reason("mkswap: %s", strerror(errno));
	return swapon(DEVICE, 0) ? reason("swapon: %s", strerror(errno)) : NULL;
}

/* Whether a connection is still there, or its last frames may still come. */
static int connection_left(void)
{
	FILE *file = fopen("/proc/net/tcp", "r");
	char line[256];
	unsigned state;
	int left = 0;

	while (file && fgets(line, sizeof line, file))
		if (sscanf(line, "%*d: %*s %*s %x", &state) == 1 && state != TCP_TIME_WAIT)
			left = 1;
	if (file)
		fclose(file);
	return left;
}

/* unswap: as an orderly shutdown does. */
const char *disconnect_swap(char *arguments)
{
	int error;

	(void)arguments;
	if (swapoff(DEVICE))
		return reason("swapoff: %s", strerror(errno));
	kill(connector, SIGKILL);
	if ((error = nbd_disconnect()))
		return reason("disconnect: %s", strerror(-error));
	for (int tries = 0; tries < 200 && connection_left(); tries++)
		usleep(10000);
	return NULL;
}
