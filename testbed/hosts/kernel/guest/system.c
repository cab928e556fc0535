/* Modules, sysctls, files read, the network interface and its neighbours. */
#include "guest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *errors(const char *what)
{
	return reason("%s: %s", what, strerror(errno));
}

/* module PATH [PARAMETERS] */
const char *load_module(char *arguments)
{
	char *parameters = arguments + strcspn(arguments, " ");
	int fd, failed;

	if (*parameters)
		*parameters++ = 0;
	fd = open(arguments, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errors(arguments);
	failed = syscall(SYS_finit_module, fd, parameters, 0) && errno != EEXIST;
	close(fd);
	return failed ? errors(arguments) : NULL;
}

/* sysctl PATH VALUE */
const char *set_sysctl(char *arguments)
{
	char path[256], *value = strchr(arguments, ' ');
	int fd, failed;

	if (!value)
		return "no value";
	*value++ = 0;
	snprintf(path, sizeof path, "/proc/sys/%s", arguments);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return errors(path);
	failed = write(fd, value, strlen(value)) < 0;
	close(fd);
	return failed ? errors(path) : NULL;
}

/* read PATH: into the page cache, where it stays while the file is open, as long as there is memory. */
const char *read_file(char *arguments)
{
	static char data[16 * PAGE];
	int fd = open(arguments, O_RDONLY | O_CLOEXEC);
	ssize_t got;

	if (fd < 0)
		return errors(arguments);
	while ((got = read(fd, data, sizeof data)) > 0)
		;
	return got < 0 ? errors(arguments) : NULL;
}

static int request(unsigned long number, void *argument)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), result = ioctl(fd, number, argument);

	close(fd);
	return result;
}

static void set_address(struct sockaddr *address, const char *text)
{
	struct sockaddr_in *in = (struct sockaddr_in *)address;

	in->sin_family = AF_INET;
	inet_pton(AF_INET, text, &in->sin_addr);
}

/* up NAME ADDRESS NETMASK MTU */
const char *bring_up(char *arguments)
{
	struct ifreq ifr = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	char address[32], netmask[32];
	int mtu;

	if (request(SIOCSIFFLAGS, &ifr))
		return errors("lo");
	if (sscanf(arguments, "%15s %31s %31s %d", ifr.ifr_name, address, netmask, &mtu) != 4)
		return "up NAME ADDRESS NETMASK MTU";
	ifr.ifr_mtu = mtu;
	if (request(SIOCSIFMTU, &ifr))
		return errors("mtu");
	set_address(&ifr.ifr_addr, address);
	if (request(SIOCSIFADDR, &ifr))
		return errors("address");
	set_address(&ifr.ifr_addr, netmask);
	if (request(SIOCSIFNETMASK, &ifr))
		return errors("netmask");
	ifr.ifr_flags = IFF_UP | IFF_RUNNING;
	return request(SIOCSIFFLAGS, &ifr) ? errors("up") : NULL;
}

/* down NAME: it takes no more frames. */
const char *take_down(char *arguments)
{
	struct ifreq ifr = { 0 };

	strncpy(ifr.ifr_name, arguments, IFNAMSIZ - 1);
	return request(SIOCSIFFLAGS, &ifr) ? errors("down") : NULL;
}

/* neighbour NAME ADDRESS MAC: an ARP entry for good. */
const char *add_neighbour(char *arguments)
{
	struct arpreq arp = { .arp_flags = ATF_PERM | ATF_COM };
	unsigned char *mac = (unsigned char *)arp.arp_ha.sa_data;
	char address[32];

	if (sscanf(arguments, "%15s %31s %hhx:%hhx:%hhx:%hhx:%hhx:%hhx", arp.arp_dev, address, mac, mac + 1, mac + 2,
		   mac + 3, mac + 4, mac + 5) != 8)
		return "neighbour NAME ADDRESS MAC";
	arp.arp_ha.sa_family = ARPHRD_ETHER;
	set_address(&arp.arp_pa, address);
	return request(SIOCSARP, &arp) ? errors("arp") : NULL;
}
