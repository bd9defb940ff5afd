// Nested counters one step on, with the sum of digit * stride kept by additions alone.
// state = {offset, digits}, digit 0 innermost. EXTENT of each digit; STEP is what is added to the
// offset when that digit counts on and all inner ones go back to 0. After the last value comes 0.
module odometer #(parameter DIGITS = 1, parameter [DIGITS*32-1:0] EXTENT = 1,
                  parameter [DIGITS*32-1:0] STEP = 0) (
    input [DIGITS*24+31:0] state, output [DIGITS*24+31:0] next
);
    wire [DIGITS:0] carry;
    wire [31:0] steps [0:DIGITS];
    assign carry[0] = 1'b1;
    assign steps[DIGITS] = 32'd0 - state[DIGITS*24 +: 32];
    genvar i;
    generate for (i = 0; i < DIGITS; i = i + 1) begin : digit
        wire [23:0] value = state[i*24 +: 24];
        wire last = value == EXTENT[i*32 +: 24] - 24'd1;
        assign carry[i+1] = carry[i] & last;
        assign next[i*24 +: 24] = carry[i] ? (last ? 24'd0 : value + 24'd1) : value;
        assign steps[i] = carry[i+1] ? steps[i+1] : STEP[i*32 +: 32];
    end endgenerate
    assign next[DIGITS*24 +: 32] = state[DIGITS*24 +: 32] + steps[0];
endmodule
