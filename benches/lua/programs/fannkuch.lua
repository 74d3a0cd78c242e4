-- The most flips that any permutation takes until its first number is one: small arrays, copied again and again.
local _, _, n = ...

local function flips(p)
  local q, count = {}, 0
  for i = 1, #p do q[i] = p[i] end
  while q[1] ~= 1 do
    local i, j = 1, q[1]
    while i < j do
      q[i], q[j] = q[j], q[i]
      i, j = i + 1, j - 1
    end
    count = count + 1
  end
  return count
end

-- All permutations by Heap's method.
local size = tonumber(n or 10)
local p, c, most, sum, sign = {}, {}, 0, 0, 1
for i = 1, size do p[i], c[i] = i, 1 end
local function visit()
  local count = flips(p)
  if count > most then most = count end
  sum, sign = sum + sign * count, -sign
end
visit()
local i = 2
while i <= size do
  if c[i] < i then
    local k = i % 2 == 1 and 1 or c[i]
    p[k], p[i] = p[i], p[k]
    visit()
    c[i], i = c[i] + 1, 2
  else
    c[i], i = 1, i + 1
  end
end
return ("%d %d"):format(most, sum)
