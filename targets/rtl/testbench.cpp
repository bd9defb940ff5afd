// Runs one engine on memory images: testbench LIMIT A B C, writes C and prints the cycles from
// `run` to `done`. Each port of the memory takes a request a cycle and answers LATENCY cycles
// later, in order; a request that does not follow the last one closes the port for GAP cycles.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <iterator>
#include <utility>
#include <vector>

#include "Vengine.h"
#include "verilated.h"

using Bytes = std::vector<unsigned char>;

template <class T> unsigned char* raw(T& signal) { return reinterpret_cast<unsigned char*>(&signal); }

static Bytes read_file(const char* path) {
    std::ifstream file(path, std::ios::binary);
    return Bytes(std::istreambuf_iterator<char>(file), {});
}

struct Port {
    Bytes image;
    unsigned width;
    long closed = 0;
    unsigned next = 0;
    bool used = false;
    std::deque<std::pair<long, unsigned>> waiting;

    Port(const char* path, unsigned bytes) : image(read_file(path)), width(bytes) {}

    bool ready(long cycle) const { return cycle >= closed; }

    void request(long cycle, unsigned address) {
        if (!used || address != next) closed = cycle + 1 + GAP;
        used = true;
        next = address + 1;
        waiting.emplace_back(cycle + LATENCY, address);
    }

    bool answer(long cycle, unsigned char* data) {
        if (waiting.empty() || waiting.front().first > cycle) return false;
        size_t place = size_t(waiting.front().second) * width;
        if (place + width > image.size()) {
            std::fprintf(stderr, "read past the end of memory, beat %u\n", waiting.front().second);
            std::exit(3);
        }
        std::memcpy(data, &image[place], width);
        waiting.pop_front();
        return true;
    }
};

int main(int argc, char** argv) {
    if (argc != 5) return 2;
    const long limit = std::atol(argv[1]);
    Port a(argv[2], A_BYTES), b(argv[3], B_BYTES);
    Bytes c;
    Vengine engine;
    engine.clk = 0;
    engine.run = 0;
    engine.reset = 1;
    engine.a_ready = engine.b_ready = engine.a_valid = engine.b_valid = 0;
    long cycle = -4;
    while (cycle < limit && !(cycle > 0 && engine.done)) {
        engine.reset = cycle < 0;
        engine.run = cycle >= 0;
        engine.a_ready = a.ready(cycle);
        engine.b_ready = b.ready(cycle);
        engine.eval();
        if (cycle >= 0 && engine.a_read && engine.a_ready) a.request(cycle, engine.a_address);
        if (cycle >= 0 && engine.b_read && engine.b_ready) b.request(cycle, engine.b_address);
        if (cycle >= 0 && engine.c_write) {
            size_t place = size_t(engine.c_address) * C_BYTES;
            if (c.size() < place + C_BYTES) c.resize(place + C_BYTES);
            std::memcpy(&c[place], raw(engine.c_data), C_BYTES);
        }
        engine.clk = 1;
        engine.eval();
        engine.a_valid = a.answer(cycle, raw(engine.a_data));
        engine.b_valid = b.answer(cycle, raw(engine.b_data));
        engine.clk = 0;
        engine.eval();
        ++cycle;
    }
    if (!engine.done) {
        std::fprintf(stderr, "not done after %ld cycles\n", limit);
        return 4;
    }
    std::ofstream(argv[4], std::ios::binary).write(reinterpret_cast<char*>(c.data()), c.size());
    std::printf("%ld\n", cycle);
    return 0;
}
