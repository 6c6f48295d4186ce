// SPDX-License-Identifier: Apache-2.0
/*
 * option_int80 socketcall|setsockopt PORT: sets a loose source route on a UDP socket by a 32-bit system call, then
 * sends to PORT on 127.0.0.1. Prints "ok", or "errno N". The upper halves of the registers, which such a call leaves
 * alone, are not zero.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define NR_SOCKETCALL 102L
#define NR_SETSOCKOPT 366L
#define SYS_SETSOCKOPT 14L /* of socketcall */
#define HIGH (1L << 40)

static const unsigned char route[8] = {131, 7, 4, 127, 0, 0, 2, 0};

int main(int argc, char **argv)
{
	/* a 32-bit call takes 32-bit pointers */
	uint32_t *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	uint32_t option = (uint32_t)(uintptr_t)(low + 16);
	long result;

	if (argc < 3)
		return 64;
	to.sin_port = htons(atoi(argv[2]));
	memcpy(low + 16, route, sizeof(route));
	if (!strcmp(argv[1], "socketcall")) {
		uint32_t words[5] = {fd, IPPROTO_IP, 4 /* IP_OPTIONS */, option, sizeof(route)};

		memcpy(low, words, sizeof(words));
		asm volatile("int $0x80"
			     : "=a"(result)
			     : "a"(NR_SOCKETCALL), "b"(SYS_SETSOCKOPT | HIGH), "c"((uintptr_t)low | HIGH)
			     : "memory", "r8", "r9", "r10", "r11");
	} else {
		asm volatile("int $0x80"
			     : "=a"(result)
			     : "a"(NR_SETSOCKOPT), "b"(fd | HIGH), "c"(IPPROTO_IP | HIGH), "d"(4L | HIGH), "S"((long)option),
			       "D"((long)sizeof(route))
			     : "memory", "r8", "r9", "r10", "r11");
	}
	if ((int)result < 0) {
		printf("errno %d\n", -(int)result);
		return 1;
	}
	if (sendto(fd, "data", 4, 0, (void *)&to, sizeof(to)) != 4) {
		printf("errno %d\n", errno);
		return 1;
	}
	puts("ok");
	return 0;
}
