// Reads tiles of B, which lie in memory one after the other in the order of use: column step by
// column step, word by word. Where B is read again for the next rows (RESTART) the address goes
// back to the first tile of the group.
module word_loader #(
    parameter GROUPS = 1, OUTER = 1, INNER = 1, K = 1, RESTART = 1,
    parameter N_STEPS = 1, N_EDGE = 1, K_WORDS = 1, K_EDGE = 1, BEATS = 1,
    parameter HALF = 1, DOUBLE = 1, BYTES = 1, WORD = 1
) (
    input clk, input reset, input run, input [1:0] full, output loaded, output reg half,
    output reg read, output reg [31:0] read_address, input read_ready,
    input read_valid, input [BYTES*8-1:0] read_data,
    output reg write, output reg [31:0] write_address, output reg [WORD*8-1:0] write_data
);
    wire k_first, k_last, inner_last, outer_last, finished;
    tile_walk #(GROUPS, OUTER, INNER, K) walk
        (clk, reset, loaded, k_first, k_last, inner_last, outer_last, finished);
    wire last_columns = RESTART ? inner_last : outer_last;
    wire [31:0] words = last_columns ? (k_last ? N_EDGE * K_EDGE : N_EDGE * K_WORDS)
                                     : (k_last ? N_STEPS * K_EDGE : N_STEPS * K_WORDS);
    wire [31:0] beats = last_columns ? (k_last ? N_EDGE * K_EDGE * BEATS : N_EDGE * K_WORDS * BEATS)
                                     : (k_last ? N_STEPS * K_EDGE * BEATS : N_STEPS * K_WORDS * BEATS);
    reg busy, asking;
    reg [31:0] asked, address, first;
    always @(posedge clk)
        if (reset) begin
            busy <= 0; asking <= 0; read <= 0; address <= 0; first <= 0;
        end else begin
            if (read_ready) read <= 0;
            if (run & !busy & !finished & !full[half]) begin
                busy <= 1; asking <= 1; asked <= 0;
            end
            if (asking & (!read | read_ready)) begin
                read <= 1;
                read_address <= address;
                address <= address + 1;
                asked <= asked + 1;
                if (asked == beats - 1) asking <= 0;
            end
            if (loaded) begin
                busy <= 0;
                if (k_last & inner_last) begin
                    if (RESTART & !outer_last) address <= first;
                    else first <= address;
                end
            end
        end

    reg [31:0] word, base;
    wire [WORD*8-1:0] whole;
    wire word_end;
    word_beats #(BEATS, BYTES) gather (clk, reset, read_valid, read_data, whole, word_end);
    assign loaded = word_end & (word == words - 1);
    always @(posedge clk) begin
        write <= word_end;
        write_address <= base + word;
        write_data <= whole;
        if (reset) begin
            word <= 0; base <= 0; half <= 0;
        end else if (word_end) begin
            word <= loaded ? 32'd0 : word + 32'd1;
            if (loaded) begin
                if (DOUBLE) half <= !half;
                base <= DOUBLE & !half ? HALF : 0;
            end
        end
    end
endmodule
