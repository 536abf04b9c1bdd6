// SPDX-License-Identifier: Apache-2.0
/*
 * Makes short TCP connections to itself, one after another, and prints what one took in microseconds: `connections
 * LISTEN PORT DESTINATION PORT BATCHES`, IPv4. Of each batch of ten the time is taken; the fifth percentile of these is
 * printed, which other work on the machine hardly disturbs.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 10

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static struct sockaddr_in address(const char *ip, const char *port)
{
	struct sockaddr_in made = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
	inet_pton(AF_INET, ip, &made.sin_addr);
	return made;
}

/* A request and an answer of 64 bytes; the end is a reset, so that no TIME_WAIT keeps a port. */
static void connect_once(int listening, const struct sockaddr_in *destination)
{
	struct linger reset = {1, 0};
	char bytes[64] = {0};
	int client = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(client, (const struct sockaddr *)destination, sizeof(*destination))) {
		perror("connect");
		exit(1);
	}
	int server = accept(listening, NULL, NULL);
	send(client, bytes, sizeof(bytes), 0);
	recv(server, bytes, sizeof(bytes), 0);
	send(server, bytes, sizeof(bytes), 0);
	recv(client, bytes, sizeof(bytes), 0);
	setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	close(client);
	close(server);
}

int main(int count, char **words)
{
	if (count != 6)
		return 2;
	struct sockaddr_in own = address(words[1], words[2]), destination = address(words[3], words[4]);
	int batches = atoi(words[5]), listening = socket(AF_INET, SOCK_STREAM, 0);
	double *times = calloc(batches, sizeof(*times));
	if (batches < 20 || !times || bind(listening, (struct sockaddr *)&own, sizeof(own)) || listen(listening, 64))
		return 1;
	for (int i = 0; i < batches; i++) {
		double began = now();
		for (int j = 0; j < BATCH; j++)
			connect_once(listening, &destination);
		times[i] = (now() - began) / BATCH;
	}
	qsort(times, batches, sizeof(*times), compare);
	printf("%.3f\n", times[batches / 20]);
	return 0;
}
